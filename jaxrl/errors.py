"""The error a user can mend."""


class UserError(Exception):
    """Wrong input. The message says what was wrong, where, and what to do.

    Commands print it as one line and exit with status 2.
    """
