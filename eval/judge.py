"""Scores benchmark samples: by the project's own rule for each category, or by any reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from dina.rewards.guards import picture_guards
from dina.rewards.protocol import Parts, RewardSpec
from dina.rewards.suite import RewardSuite
from dina.rollout.protocol import Prompt, Sample

SCENES_DETECTOR = "dina.recipes.scenes.detector:ShapeDetector"
TIMEOUT = 300.0
_OWN = "own"
_Scored = tuple[float | None, Parts, str | None]
"""Score, sub-scores with the reason, and why it failed."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one sample.

    Attributes:
        score: 0..1, the category's headline score; None where it could not be measured.
        scores: further numbers (``graded``, ``similarity``), averaged per category in the summary.
        guards: statistics against reward hacking, averaged over all pictures.
        reason: why the score is what it is, for people.
        failure: why there is no score; None where there is one.
    """

    score: float | None
    scores: dict[str, float] = field(default_factory=dict)
    guards: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    failure: str | None = None


class Judge(Protocol):
    """Scores finished samples; ``label`` names the rule and the detector, and heads every table."""

    label: str

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]: ...


class RewardJudge:
    """GenEval's strict rule for objects, OCR for rendered text, exact match for answers; or a reward of one's own.

    * Pictures of objects: 1 if everything asked for is there, exactly, and nothing else is; ``graded`` is the
      partial credit that training sees.
    * ``text_rendering``: 1 if OCR reads exactly the texts asked for, and no other; ``similarity`` is graded.
    * Questions: 1 if the answer is an accepted one after normalisation; or what the reward says that the row's
      column ``metric`` names (``choice``, ``number``, ``anls``, ``package.module:attr``, …).

    Args:
        detector: a detector, or where to import one from (``package.module:attr``).
        detector_name: what the label calls it; scores of different detectors cannot be compared.
        timeout: seconds for one batch.
        reward: judges every sample that it applies to, with a score in 0..1; the rules above judge the rest.
    """

    def __init__(
        self,
        detector: Any = SCENES_DETECTOR,
        detector_name: str = "scenes",
        timeout: float = TIMEOUT,
        reward: RewardSpec | None = None,
    ) -> None:
        self.label = f"GenEval-style ({detector_name} detector)" if reward is None else _named(reward)
        objects = {"detector": detector, "mode": "graded"}
        self._specs = {
            "objects": RewardSpec("objects", kwargs=objects, timeout=timeout),
            "ocr": RewardSpec("ocr", timeout=timeout),
            "vqa": RewardSpec("vqa", timeout=timeout),
        }
        if reward is not None:
            self._specs[_OWN] = reward
        self._timeout = timeout
        self._suites: dict[str, RewardSuite] = {}

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample; a reward that fails gives a verdict with a ``failure``, never a zero.

        Raises:
            DinaError: the detector cannot be loaded, or a reward timed out in three batches in a row.
        """
        verdicts = self._by_reward(samples) if _OWN in self._specs else {}
        rules: dict[str, list[int]] = {}
        for i, sample in enumerate(samples):
            if i not in verdicts:
                rules.setdefault(rule_of(sample.prompt), []).append(i)
        for rule, rows in rules.items():
            verdicts |= dict(zip(rows, self._by_rule(rule, [samples[i] for i in rows]), strict=True))
        return [verdicts[i] for i in range(len(samples))]

    def close(self) -> None:
        for suite in self._suites.values():
            suite.close()

    def _by_rule(self, rule: str, samples: Sequence[Sample]) -> list[Verdict]:
        return [
            _verdict(rule, sample, *scored)
            for sample, scored in zip(samples, self._score(rule, samples), strict=True)
        ]

    def _by_reward(self, samples: Sequence[Sample]) -> dict[int, Verdict]:
        """Verdicts of the samples that the own reward applies to, by their number."""
        return {
            i: _own_verdict(samples[i], score, parts, failure)
            for i, (score, parts, failure) in enumerate(self._score(_OWN, samples))
            if score is not None or failure is not None
        }

    def _score(self, rule: str, samples: Sequence[Sample]) -> list[_Scored]:
        spec = self._specs.setdefault(rule, RewardSpec(rule, timeout=self._timeout))
        if rule not in self._suites:
            self._suites[rule] = RewardSuite([spec])
        scored = self._suites[rule].score(samples)
        failures = {failure.sample_index: failure.reason for failure in scored.failures}
        scores, parts = scored.per_reward[spec.label], scored.parts[spec.label]
        return [(scores[i], parts[i] or {}, failures.get(i)) for i in range(len(samples))]


def _named(spec: RewardSpec) -> str:
    """The label of a reward's scores. Its arguments belong to it: scores under other ones cannot be compared."""
    given = ", ".join(f"{name}={value}" for name, value in spec.kwargs.items())
    return f"{spec.label} ({given})" if given else spec.label


def rule_of(prompt: Prompt) -> str:
    """Which rule decides a prompt's headline score: ``objects``, ``ocr``, ``vqa``, or the ``metric`` of a question."""
    if prompt.task == "vqa":
        return str(prompt.columns.get("metric") or "vqa")
    columns = prompt.columns
    text_only = bool(columns.get("text")) and not columns.get("include")
    return "ocr" if prompt.tag == "text_rendering" or text_only else "objects"


def _guards(sample: Sample, parts: Parts) -> dict[str, float]:
    guards = picture_guards(sample.image) if sample.image is not None else {}
    return guards | {
        name: parts[name] for name in ("excess_objects", "excess_text") if parts.get(name) is not None
    }


def _own_verdict(sample: Sample, score: float | None, parts: Parts, failure: str | None) -> Verdict:
    numbers = {
        name: float(value)
        for name, value in parts.items()
        if isinstance(value, Real) and math.isfinite(value)
    }
    return Verdict(score, numbers, _guards(sample, parts), str(parts.get("reason") or ""), failure)


def _verdict(rule: str, sample: Sample, score: float | None, parts: Parts, failure: str | None) -> Verdict:
    guards = _guards(sample, parts)
    if score is None and sample.prompt.task == "t2i" and sample.image is None:
        return Verdict(0.0, reason="no picture was drawn")
    if score is None:
        needs = {"objects": "`include`", "ocr": "`text`"}.get(rule, "`answer`")
        return Verdict(None, guards=guards, failure=failure or f"the prompt's row has no usable {needs}")
    reason = str(parts.get("reason") or "")
    if rule == "objects":
        return Verdict(float(parts["strict"]), {"graded": score}, guards, reason)
    if rule == "ocr":
        return Verdict(float(score == 1.0), {"similarity": parts["similarity"]}, guards, reason)
    return Verdict(score, guards=guards, reason=reason)
