"""What rewards for written answers share: which samples they apply to, accepted answers, and reasons."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from dina.rewards.protocol import LogExtra, log_parts
from dina.rewards.registry import find_reward

_MARKER = re.compile(r"\banswer:", re.IGNORECASE)


class AnswerReward(ABC):
    """A reward that compares the text of a completion with the row's accepted answers; the best one counts.

    Columns: ``answer`` (a string, a number, or a list of accepted ones), ``metric`` (the reward that judges the row, as
    recipes name it; may be left out). ``None`` for a row without an answer or with another metric, and for a picture.

    Args:
        tag: compare what stands in ``<tag>...</tag>`` of the completion, the last one if there are several; a
            completion without it scores 0. By default what follows the last ``answer:`` is the answer, so that a model
            may reason first; a completion without it is an answer as a whole.
    """

    def __init__(self, tag: str | None = None) -> None:
        self.tag = tag

    @abstractmethod
    def compare(self, said: str, wanted: Any) -> float:
        """How well ``said`` answers, where ``wanted`` is right: 0 to 1."""

    def __call__(
        self,
        completions: Sequence[list[dict[str, Any]]],
        answer: Sequence[Any],
        log_extra: LogExtra | None = None,
        metric: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        scores: list[float | None] = []
        reasons: list[dict[str, Any] | None] = []
        for completion, wanted, name in zip(completions, answer, metric or [None] * len(answer), strict=True):
            said = completion[0]["content"]
            other = name is not None and find_reward(name) is not type(self)
            if wanted is None or other or not isinstance(said, str):
                scores.append(None)
                reasons.append(None)
                continue
            accepted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
            found = final_answer(said) if self.tag is None else tagged(said, self.tag)
            values = [self.compare(found, entry) for entry in accepted] if found is not None else []
            scores.append(max(values, default=0.0))
            reasons.append({"reason": f"said {said!r}, wanted {' or '.join(map(repr, accepted))}"})
        log_parts(log_extra, reasons)
        return scores


def final_answer(text: str) -> str:
    """What follows the last ``answer:``, in any case of letters; the whole text if there is none."""
    return _MARKER.split(text)[-1].strip() if _MARKER.search(text) else text


def tagged(text: str, tag: str) -> str | None:
    """What stands in the last ``<tag>...</tag>``, without white space around it; ``None`` if there is none."""
    found = re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
    return found[-1].strip() if found else None
