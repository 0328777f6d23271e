"""The commands of `main.py`: each parses, resolves and runs."""
