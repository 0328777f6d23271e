"""The one exception for what a user did wrong."""


class UserError(Exception):
    """A user's mistake, said in one or two lines: what is wrong and what to do. `main.py` prints it and exits 2."""
