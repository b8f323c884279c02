"""How a command fails when it is not the program's fault."""


class UserError(Exception):
    """One clear line for the person at the terminal; the command prints it and exits with code 2."""
