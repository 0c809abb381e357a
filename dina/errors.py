"""The errors a user sees: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DinaError(Exception):
    """A problem the user can mend. The command line prints its message without a traceback.

    Attributes:
        exit_code: what the program ends with; 130 for errors that say the user stopped it.
    """

    exit_code = 2


def advice(word: str, valid: Iterable[str]) -> str:
    """What to offer for a word that is not in ``valid``: the nearest one, or all of them if none is near."""
    names = sorted(set(valid))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "there is none"
