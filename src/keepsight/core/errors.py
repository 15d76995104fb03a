"""Errors a user can act on; everything else is a fault of ours and keeps its traceback."""


class UserError(Exception):
    """Bad input: one sentence that names the thing, what was found, what was expected and what to do next.

    The command line prints the sentence alone and exits with code 2.
    """
