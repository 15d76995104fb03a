"""Errors a user can act on; everything else is a fault of ours and keeps its traceback."""


class UserError(Exception):
    """Bad input: one sentence that names the thing, what was found, what was expected and what to do next.

    The command line prints the sentence alone and exits with code 2.
    """


class CollapsedError(UserError):
    """A training ended in a degenerate model: there is no result of it. A run goes on with its other methods and says so."""
