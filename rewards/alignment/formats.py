"""How a vision language model is asked for a score, and how its answer is read.

A format asks either for one of a few labels, whose probabilities give a fine-grained score in one token, or for free
text with scores in it. An answer that holds no score gives none: it is a failure of the judge, not a bad picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dina.errors import DinaError, advice


class JudgeError(RuntimeError):
    """A judge that gave no score: it could not be reached, or its answer could not be read."""


@dataclass(frozen=True)
class Judgement:
    """A score in [0, 1], or ``None`` where the answer could not be read; ``parts`` are sub-scores in [0, 1]."""

    score: float | None
    reason: str
    parts: dict[str, float] = field(default_factory=dict)


class ScoreFormat:
    """A way to ask. Sub-classes set a default instruction, and read labels or text.

    Args:
        instruction: the question, with ``{prompt}`` where the prompt of the picture goes; braces elsewhere stay.
    """

    default_instruction: str
    labels: tuple[str, ...] = ()
    """Answers in one token that are weighed; empty for free text."""
    max_tokens: int = 1

    def __init__(self, instruction: str | None = None) -> None:
        self.instruction = instruction or self.default_instruction
        if "{prompt}" not in self.instruction:
            raise DinaError(
                "the instruction of a judge must hold {prompt}, or it cannot see what was asked for"
            )

    def question(self, prompt: str) -> str:
        return self.instruction.replace("{prompt}", prompt)

    def weigh(self, probabilities: Mapping[str, float]) -> Judgement:
        """Reads the probabilities of the next token (any share of the vocabulary that holds the labels)."""
        raise NotImplementedError

    def read(self, answer: str) -> Judgement:
        """Reads a free answer."""
        raise NotImplementedError


class ExpectedScore(ScoreFormat):
    """The expected value of a rating from 1 to 5, from the probabilities of one token.

    Two pictures rarely tie, as they do with whole ratings, and no reasoning has to be generated.
    """

    labels = ("1", "2", "3", "4", "5")
    least_mass = 0.01
    """Below this the model did not answer with a rating at all."""
    default_instruction = (
        'How well does this picture show what was asked for: "{prompt}"?\n'
        "5: everything, with the right objects, numbers, colours and places. 3: about half of it. 1: nothing of it.\n"
        "Answer with one digit from 1 to 5."
    )

    def weigh(self, probabilities: Mapping[str, float]) -> Judgement:
        mass = {label: 0.0 for label in self.labels}
        for token, probability in probabilities.items():
            if token.strip() in mass:
                mass[token.strip()] += probability
        total = sum(mass.values())
        if total < self.least_mass:
            return Judgement(None, f"no rating among the likely tokens {sorted(probabilities)[:5]}")
        rating = sum(int(label) * p for label, p in mass.items()) / total
        score = (rating - 1) / (len(self.labels) - 1)
        return Judgement(score, f"expected rating {rating:.2f} of 5", {"rating_mass": min(total, 1.0)})


class UnifiedRewardScore(ScoreFormat):
    """UnifiedReward-2.0's pointwise answer: alignment, coherence and style, each from 1 to 5; the mean is the score.

    The instruction says the same as the model's own in other words; give the model's own by ``instruction``.
    """

    max_tokens = 512
    default_instruction = (
        "A picture was generated from a caption. Rate it on three scales from 1 (worst) to 5 (best), in tenths:\n"
        "Alignment: does it show what the caption says? Coherence: is it free of defects and impossible things?\n"
        "Style: does it look good, apart from the caption?\n\n"
        "Caption: {prompt}\n\n"
        "Write three lines and nothing else:\n"
        "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z"
    )
    scales = ("alignment", "coherence", "style")

    def read(self, answer: str) -> Judgement:
        parts: dict[str, float] = {}
        for scale in self.scales:
            # Possessive: an echoed "(1-5)" without a number after it must not be read as a 1.
            pattern = rf"{scale}\s+score\s*+(?:\(1-5\))?+\W*?(\d+(?:\.\d+)?)"
            found = re.findall(pattern, answer, re.IGNORECASE)
            if found and 1 <= float(found[-1]) <= 5:
                parts[scale] = (float(found[-1]) - 1) / 4
        missing = [scale for scale in self.scales if scale not in parts]
        if missing:
            return Judgement(None, f"no {' and no '.join(missing)} score from 1 to 5 in {answer!r:.200}")
        return Judgement(sum(parts.values()) / len(parts), " ".join(answer.split())[:300], parts)


class TaggedScore(ScoreFormat):
    """A number from 0 to ``best`` in ``<score>...</score>``, after as much reasoning as the model likes.

    Args:
        instruction: see :class:`ScoreFormat`.
        best: the highest score.
        max_tokens: longest answer.
    """

    default_instruction = (
        'Compare this picture with what was asked for: "{prompt}".\n'
        "Say briefly what is right and what is wrong: objects, numbers, colours, places, text. Then give a score from "
        "0 (nothing is right) to 10 (all is right) as <score>number</score>."
    )

    def __init__(self, instruction: str | None = None, best: float = 10.0, max_tokens: int = 512) -> None:
        super().__init__(instruction)
        self.best, self.max_tokens = best, max_tokens

    def read(self, answer: str) -> Judgement:
        found = re.findall(r"<score>\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*\d+\s*)?</score>", answer, re.IGNORECASE)
        if not found or not 0 <= float(found[-1]) <= self.best:
            return Judgement(None, f"no score from 0 to {self.best:g} in tags in {answer!r:.200}")
        return Judgement(float(found[-1]) / self.best, " ".join(answer.split())[:300])


FORMATS = {"expected": ExpectedScore, "unified_reward": UnifiedRewardScore, "tagged": TaggedScore}


def make_format(form: str | ScoreFormat, instruction: str | None = None) -> ScoreFormat:
    """A format by name, with a question of one's own if given.

    Raises:
        DinaError: no format has that name.
    """
    if isinstance(form, ScoreFormat):
        return form
    if form not in FORMATS:
        raise DinaError(f"no score format {form!r}: {advice(form, FORMATS)}")
    return FORMATS[form](instruction)
