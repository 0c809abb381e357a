"""Answers to questions, compared word for word after normalisation."""

from __future__ import annotations

import re
from typing import Any

from dina.rewards.answers import AnswerReward

_IN_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
NUMBERS = tuple(_IN_WORDS.split())
NUMBER_WORDS = {word: str(number) for number, word in enumerate(NUMBERS)}
"""``zero`` to ``twenty``, as digits."""
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
    return " ".join(NUMBER_WORDS.get(word, word) for word in words)


class ExactMatchReward(AnswerReward):
    """Reward: 1.0 if the answer is one of the accepted ones after :func:`normalise_answer`, else 0.0."""

    def compare(self, said: str, wanted: Any) -> float:
        return float(normalise_answer(said) == normalise_answer(wanted))
