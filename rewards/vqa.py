"""Answers to questions, compared word for word after normalisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dina.rewards.protocol import LogExtra, log_parts

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_ARTICLES = {"a", "an", "the"}
_DROPPED = re.compile(r"['’]|(?<=\d),(?=\d{3}\b)")
_PUNCTUATION = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,%+-]|(?<!\w)-(?!\d)|(?<=\w)-|_")


def normalise_answer(answer: Any) -> str:
    """Lower case without articles and punctuation, number words up to twenty as digits.

    ``"The Three."`` becomes ``"3"``; signs and decimal points of numbers stay.
    """
    text = _PUNCTUATION.sub(" ", _DROPPED.sub("", str(answer).casefold()))
    every = text.split()
    words = [word for word in every if word not in _ARTICLES] or every  # "A" is an answer to a choice
    return " ".join(_DIGITS.get(word, word) for word in words)


class ExactMatchReward:
    """Reward: 1.0 if the answer is one of the accepted ones after :func:`normalise_answer`, else 0.0.

    Columns: ``answer`` (a string, a number, or a list of accepted ones). ``None`` for a row without it, and for
    a picture.
    """

    def __call__(
        self,
        completions: Sequence[list[dict[str, Any]]],
        answer: Sequence[Any],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        scores: list[float | None] = []
        reasons: list[dict[str, Any] | None] = []
        for completion, wanted in zip(completions, answer, strict=True):
            said = completion[0]["content"]
            if wanted is None or not isinstance(said, str):
                scores.append(None)
                reasons.append(None)
                continue
            accepted = wanted if isinstance(wanted, list | tuple) else [wanted]
            right = normalise_answer(said) in {normalise_answer(entry) for entry in accepted}
            scores.append(float(right))
            reasons.append({"reason": f"said {said!r}, wanted {' or '.join(map(repr, accepted))}"})
        log_parts(log_extra, reasons)
        return scores
