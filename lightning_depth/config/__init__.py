"""Words on the command line and YAML become one resolved config."""
