"""Commands of `main.py` that are no Trainer methods, one file each, with a `main(arguments)`."""
