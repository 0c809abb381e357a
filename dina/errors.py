"""The errors a user sees: what was wrong, where, and what to do."""


class DinaError(Exception):
    """A problem the user can mend. The command line prints its message without a traceback and exits with 2."""
