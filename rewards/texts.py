"""Texts that a prompt asks for, compared with texts that were read: quotes, normal forms, edit distance, buckets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

# The limit keeps a long prompt of opening quotes from being searched to its end once for each of them.
_LONGEST_QUOTE = 500
_QUOTED = re.compile(
    r'"([^"]+)"|“([^”]{1,N})”|„([^“”]{1,N})[“”]|«([^»]{1,N})»|「([^」]{1,N})」|『([^』]{1,N})』'
    r"|‘(.{1,N}?)’(?!\w)|(?<!\w)'(.{1,N}?)'(?!\w)".replace("N", str(_LONGEST_QUOTE))
)
TEXT_LIMITS = (1, 4, 9, 20)
CHARACTER_LIMITS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class TextScore:
    """Outcome of :func:`score_text`; every number lies in [0, 1].

    Attributes:
        score: ``similarity * (1 - excess_cost * excess)``.
        similarity: the better one of ``matched`` and ``in_order``.
        matched: mean similarity of targets and lines, assigned one to one.
        in_order: similarity of all targets and all lines, each joined in reading order.
        excess: share of the characters read that goes beyond the number asked for.
    """

    score: float
    similarity: float
    matched: float
    in_order: float
    excess: float

    @property
    def parts(self) -> dict[str, float]:
        return {
            "similarity": self.similarity,
            "matched": self.matched,
            "in_order": self.in_order,
            "excess_text": self.excess,
        }


def score_text(lines: Sequence[str], targets: Sequence[str], excess_cost: float = 1.0) -> TextScore:
    """Compares the lines that were read with the texts that were asked for, both normalised already.

    The similarity of a target and a line is ``max(0, 1 - edit distance / length of the target)``. One text that
    OCR broke into two lines is made good by ``in_order``, texts that stand in another order by ``matched``.
    """
    table = np.array([[_similarity(line, target) for line in lines] for target in targets])
    matched = 0.0
    if lines:
        rows, columns = linear_sum_assignment(table, maximize=True)
        matched = float(table[rows, columns].sum()) / len(targets)
    read, asked = "".join(lines), "".join(targets)
    in_order = _similarity(read, asked)
    excess = max(0, len(read) - len(asked)) / max(len(read), 1)
    similarity = max(matched, in_order)
    return TextScore(similarity * (1 - excess_cost * excess), similarity, matched, in_order, excess)


def quoted(prompt: str) -> list[str]:
    """The quoted parts of a prompt, in straight, curly, low, angle or CJK quotes; apostrophes are no quotes.

    Between any but straight double quotes, up to 500 characters.
    """
    return [next(filter(None, groups)) for groups in _QUOTED.findall(prompt)]


def asked_texts(prompt: str, text: Sequence[str] | str | None = None) -> list[str]:
    """The texts that a prompt wants drawn: its own list, or its quoted words where it has none (``None``)."""
    if text is None:
        return quoted(prompt)
    return [text] if isinstance(text, str) else [str(entry) for entry in text]


def normalise(text: str, ignore_case: bool = True, ignore_space: bool = True) -> str:
    """NFKC form (full-width letters and punctuation become plain ones), case folded, white space dropped."""
    text = unicodedata.normalize("NFKC", text)
    if ignore_case:
        text = text.casefold()
    return "".join(text.split()) if ignore_space else " ".join(text.split())


class TextBucket(NamedTuple):
    """How hard a prompt is to draw as text: ranges of the number of texts and of all their characters."""

    texts: str
    characters: str


def text_bucket(
    prompt: str,
    text: Sequence[str] | str | None = None,
    text_limits: Sequence[int] = TEXT_LIMITS,
    character_limits: Sequence[int] = CHARACTER_LIMITS,
) -> TextBucket:
    """The bucket of a prompt, to draw batches of even difficulty (LongCat-Next, section 6.1, samples so).

    Limits are the upper ends of the ranges, ascending: ``(1, 4)`` gives ``0``, ``1``, ``2-4`` and ``5+``. White space
    is not counted. A prompt without text is in ``("0", "0")``.
    """
    texts = [stripped for entry in asked_texts(prompt, text) if (stripped := "".join(entry.split()))]
    return TextBucket(
        _range(len(texts), text_limits), _range(sum(len(entry) for entry in texts), character_limits)
    )


def _range(n: int, limits: Sequence[int]) -> str:
    if n == 0:
        return "0"
    lowest = 1
    for limit in limits:
        if n <= limit:
            return str(limit) if lowest == limit else f"{lowest}-{limit}"
        lowest = limit + 1
    return f"{lowest}+"


def _similarity(line: str, target: str) -> float:
    return max(0.0, 1 - Levenshtein.distance(line, target) / len(target))
