"""Rewards of benchmarks of image understanding: choices, numbers, read text, charts, and the form of an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from rapidfuzz.distance import Levenshtein

from dina.rewards.answers import AnswerReward
from dina.rewards.protocol import LogExtra
from dina.rewards.vqa import NUMBER_WORDS, normalise_answer

_WHOLE = re.compile(r"\s*\(?([A-Za-z])\)?[.:)]?\s*")
_LEADING = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[).:])\s")
_STATED = re.compile(
    r"\b(?:[Aa]nswer(?:\s+is|\s*:)|[Oo]ption|[Cc]hoice(?:\s+is)?)\s*:?\s*(?:\(([A-Z])\)|([A-Z])\b)"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_NUMBER = re.compile(
    rf"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?|\b(?:{'|'.join(NUMBER_WORDS)})\b"
)


class ChoiceReward(AnswerReward):
    """Reward: 1.0 if the right choice was taken, else 0.0.

    Columns: ``answer`` (the letter, the text of the choice, or its index from 0), ``choices`` (texts, may be left out).
    Read are a letter alone, a leading ``B.`` or ``(B)``, ``the answer is B`` (the last one), and the text of one
    choice; an answer that names several texts takes none.
    """

    def __call__(
        self,
        completions: Sequence[list[dict[str, Any]]],
        answer: Sequence[Any],
        log_extra: LogExtra | None = None,
        metric: Sequence[str | None] | None = None,
        choices: Sequence[Sequence[Any] | None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        offered = choices or [None] * len(answer)
        written = [isinstance(completion[0]["content"], str) for completion in completions]
        rows = [
            _Choice.of(right, options or ()) if is_text and right is not None else None
            for is_text, right, options in zip(written, answer, offered, strict=True)
        ]
        return super().__call__(completions, rows, log_extra, metric)

    def compare(self, said: str, wanted: Any) -> float:
        choice = wanted if isinstance(wanted, _Choice) else _Choice.of(wanted, ())
        return float(chosen(said, choice.options) == choice.letter)


class NumberReward(AnswerReward):
    """Reward: 1.0 if the last number of the answer is the right one within a tolerance, else 0.0.

    Number words up to twenty and thousands separators are read; units and percent signs are not looked at.

    Args:
        tolerance: greatest absolute difference.
        relative: greatest difference as a share of the right number; the larger of both allowances counts.
        tag: see :class:`AnswerReward`.
    """

    def __init__(self, tolerance: float = 0.0, relative: float = 0.0, tag: str | None = None) -> None:
        if tolerance < 0 or relative < 0:
            raise ValueError("tolerance and relative must not be negative")
        super().__init__(tag)
        self.tolerance, self.relative = tolerance, relative

    def compare(self, said: str, wanted: Any) -> float:
        right, found = last_number(str(wanted)), last_number(said)
        if right is None:
            raise ValueError(f"the accepted answer {wanted!r} is no number")
        if found is None:
            return 0.0
        return float(abs(found - right) <= max(self.tolerance, self.relative * abs(right)) + 1e-9)


class ANLSReward(AnswerReward):
    """Reward: one minus the normalised edit distance, 0.0 from half wrong on (ANLS; Biten et al. 2019, equation 1).

    Args:
        threshold: normalised distances of this size and above score 0.
        tag: see :class:`AnswerReward`.
    """

    def __init__(self, threshold: float = 0.5, tag: str | None = None) -> None:
        super().__init__(tag)
        self.threshold = threshold

    def compare(self, said: str, wanted: Any) -> float:
        distance = Levenshtein.normalized_distance(_plain(said), _plain(wanted))
        return 1 - distance if distance < self.threshold else 0.0


class RelaxedAccuracyReward(AnswerReward):
    """Reward: 1.0 if a number is within 5 %, or another answer is the same but for case (ChartQA; Masry et al. 2022).

    As in ChartQA's evaluation ``12%`` is 0.12, and an accepted 0 is compared as text.

    Args:
        relative: greatest difference as a share of the right number.
        tag: see :class:`AnswerReward`.
    """

    def __init__(self, relative: float = 0.05, tag: str | None = None) -> None:
        super().__init__(tag)
        self.relative = relative

    def compare(self, said: str, wanted: Any) -> float:
        found, right = _as_float(said), _as_float(wanted)
        if found is not None and right:
            return float(abs(found - right) / abs(right) <= self.relative)
        return float(_plain(said) == _plain(wanted))


class FormatReward:
    """Reward: 1.0 if a written answer has the form asked for, else 0.0; ``None`` for a picture.

    Args:
        tags: the answer is these sections in this order and nothing else, ``<think>...</think><answer>...</answer>``
            by default, each once and not empty.
        pattern: a regular expression that the whole answer must match, instead of ``tags``.
    """

    def __init__(self, tags: Sequence[str] = ("think", "answer"), pattern: str | None = None) -> None:
        self._pattern = re.compile(pattern or _sections(tags), re.DOTALL)

    def __call__(self, completions: Sequence[list[dict[str, Any]]], **_: Any) -> list[float | None]:
        said = [completion[0]["content"] for completion in completions]
        return [
            float(bool(self._pattern.fullmatch(text.strip()))) if isinstance(text, str) else None
            for text in said
        ]


@dataclass(frozen=True)
class _Choice:
    """The right choice of a row."""

    letter: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, right: Any, options: Sequence[Any]) -> _Choice:
        texts = tuple(str(option) for option in options)
        plain = [normalise_answer(text) for text in texts]
        if isinstance(right, int):
            return cls(ascii_uppercase[right], texts)
        if normalise_answer(right) in plain and not _WHOLE.fullmatch(str(right)):
            return cls(ascii_uppercase[plain.index(normalise_answer(right))], texts)
        letter = _WHOLE.fullmatch(str(right))
        if letter is None:
            raise ValueError(f"the right answer {right!r} is no letter and none of the choices {list(texts)}")
        return cls(letter[1].upper(), texts)

    def __repr__(self) -> str:
        return repr(self.letter)


def chosen(said: str, options: Sequence[str] = ()) -> str | None:
    """The letter of the choice that an answer takes, ``None`` if it takes none or several."""
    if whole := _WHOLE.fullmatch(said):
        return whole[1].upper()
    if leading := _LEADING.match(said):
        return leading[1] or leading[2]
    if stated := _STATED.findall(said):
        return stated[-1][0] or stated[-1][1]
    text = f" {normalise_answer(said)} "
    named = [i for i, option in enumerate(options) if f" {normalise_answer(option)} " in text]
    same = [i for i in named if text.strip() == normalise_answer(options[i])]
    found = same or named
    return ascii_uppercase[found[0]] if len(found) == 1 else None


def last_number(text: str) -> float | None:
    """The last number in a text, in digits or as a word up to twenty; ``None`` if there is none."""
    found = _NUMBER.findall(_THOUSANDS.sub("", text.lower().replace("−", "-")))
    return float(NUMBER_WORDS.get(found[-1], found[-1])) if found else None


def _as_float(answer: Any) -> float | None:
    text = str(answer).strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _plain(answer: Any) -> str:
    return " ".join(str(answer).casefold().split())


def _sections(tags: Sequence[str]) -> str:
    if not tags:
        raise ValueError("tags is empty: name a section, or give a pattern")
    # A section may hold any text but another tag of the list, so that none of them comes twice.
    names = "|".join(re.escape(tag) for tag in tags)
    inside = rf"\s*(?:(?!</?(?:{names})>)\S)(?:(?!</?(?:{names})>).)*"
    return r"\s*".join(rf"<{re.escape(tag)}>{inside}</{re.escape(tag)}>" for tag in tags)
