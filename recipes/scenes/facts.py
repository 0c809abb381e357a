"""Grades a description of a scene by its facts: which objects it names, with which colours, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from dina.recipes.scenes.shapes import COLORS, PLURALS, SHAPES
from dina.rewards.answers import AnswerReward
from dina.rewards.protocol import LogExtra

_SINGULAR = {plural: shape for shape, plural in PLURALS.items()} | {shape: shape for shape in SHAPES}
_BREAK = re.compile(r"[,.;]|\band\b")
_PLACE = re.compile(r"\b(?:at the (top|bottom)? ?(left|right)?|in the (middle))\b")


class Claim(NamedTuple):
    """What a phrase says of one object; ``None`` is left open."""

    shape: str | None = None
    color: str | None = None
    place: str | None = None

    @property
    def facts(self) -> int:
        """How much it says. A phrase without any known word says one thing that is wrong."""
        return max(1, sum(value is not None for value in self))


def read_claims(text: str) -> list[Claim]:
    """The objects that a description names, one per phrase between commas and ``and``."""
    phrases = [" ".join(part.split()) for part in _BREAK.split(text.lower())]
    return [_claim(phrase) for phrase in phrases if phrase]


def facts_f1(said: str, wanted: str) -> float:
    """Harmonic mean of the shares of facts said that are right, and of facts wanted that were said: 0 to 1.

    Objects are paired one to one so that most facts agree; a fact is a shape, a colour or a place. An object said
    twice is wrong the second time.
    """
    claims, truths = read_claims(said), read_claims(wanted)
    if not claims or not truths:
        return float(claims == truths)
    agreeing = np.array([[_agreement(claim, truth) for truth in truths] for claim in claims])
    right = agreeing[linear_sum_assignment(agreeing, maximize=True)].sum()
    return float(2 * right / (sum(c.facts for c in claims) + sum(t.facts for t in truths)))


class FactsReward(AnswerReward):
    """Reward: F1 of the facts of a description against those of ``answer``; see :func:`facts_f1`.

    For rows whose ``metric`` names it alone: an answer of one word is no description.
    """

    def __call__(  # type: ignore[override]  # called by keyword; here the column ``metric`` is a must
        self,
        completions: Sequence[list[dict[str, Any]]],
        answer: Sequence[Any],
        metric: Sequence[str | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        return super().__call__(completions, answer, log_extra, metric)

    def compare(self, said: str, wanted: Any) -> float:
        return facts_f1(said, str(wanted))


def _claim(phrase: str) -> Claim:
    words = phrase.split()
    shapes = [_SINGULAR[word] for word in words if word in _SINGULAR]
    colors = [word for word in words if word in COLORS]
    place = _PLACE.search(phrase)
    return Claim(
        shapes[0] if shapes else None,
        colors[0] if colors else None,
        " ".join(word for word in place.groups() if word) if place else None,
    )


def _agreement(claim: Claim, truth: Claim) -> int:
    return sum(a is not None and a == b for a, b in zip(claim, truth, strict=True))
