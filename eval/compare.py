"""Two results on the same prompts with the same seeds, compared pair by pair."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dina.errors import DinaError
from dina.eval.pictures import histogram_similarity
from dina.eval.result import BenchmarkResult, prompt_means
from dina.eval.statistics import (
    NO_DATA,
    Interval,
    mean_interval,
    paired_interval,
    paired_stratified_interval,
    stratified_interval,
)

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class PairedScore:
    """One number before and after, over the prompts that have it on both sides.

    Attributes:
        before, after, difference: estimates with intervals; ``difference`` is after - before, paired by prompt.
        left_out: prompts without a sample that has the number on both sides (failed scores).
    """

    before: Interval
    after: Interval
    difference: Interval
    left_out: int = 0

    @property
    def clear(self) -> bool:
        """True where the interval of the difference excludes 0."""
        return self.difference.excludes(0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "difference": self.difference.to_json(),
            "left_out": self.left_out,
        }


@dataclass
class Comparison:
    """Before and after, with everything a reader asks about them.

    Attributes:
        overall: mean of the ``averaged`` categories.
        categories: tag -> the category's headline score.
        further: ``<tag>/<name>`` -> further scores (graded objects, similarity of text).
        guards: statistics against reward hacking, over all pictures.
        unique_ratio_kept: unique-picture ratio after / before.
        colour_similarity: intersection of the colour histograms, 1 where they are equal.
        config_diff: (key, before, after) of the settings that differ between two runs.
    """

    before: BenchmarkResult
    after: BenchmarkResult
    overall: PairedScore
    categories: dict[str, PairedScore]
    further: dict[str, PairedScore]
    guards: dict[str, PairedScore]
    unique_ratio_kept: float
    colour_similarity: float
    config_diff: list[tuple[str, Any, Any]] = field(default_factory=list)

    @property
    def averaged(self) -> list[str]:
        return self.before.averaged

    def paired_scores(self) -> tuple[Scores, Scores]:
        """(before, after): tag -> prompt id -> score, for pooling over runs."""
        pairs = {tag: _common(self.before, self.after, tag, "score") for tag in self.categories}
        return {tag: p[0] for tag, p in pairs.items()}, {tag: p[1] for tag, p in pairs.items()}

    def to_json(self) -> dict[str, Any]:
        """Intervals and differences as plain JSON data; scores are shares in 0..1."""
        return {
            "label": self.before.label,
            "overall": self.overall.to_json() | {"categories": self.averaged},
            "categories": {tag: score.to_json() for tag, score in self.categories.items()},
            "further": {name: score.to_json() for name, score in self.further.items()},
            "guards": {name: score.to_json() for name, score in self.guards.items()},
            "pictures": {
                "before": self.before.pictures.to_json(),
                "after": self.after.pictures.to_json(),
                "unique_ratio_kept": _null(self.unique_ratio_kept),
                "colour_similarity": _null(self.colour_similarity),
            },
            "config_diff": [list(entry) for entry in self.config_diff],
            "before": self.before.summary(),
            "after": self.after.summary(),
        }

    def save(self, folder: Path) -> None:
        """Writes ``before.json`` and ``after.json`` with rows and pictures, and ``comparison.json``."""
        self.before.save(folder / "before.json")
        self.after.save(folder / "after.json")
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, default=str)
        (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Comparison:
        """Compares the two results of a folder that ``save`` wrote."""
        return compare(
            BenchmarkResult.load(folder / "before.json"), BenchmarkResult.load(folder / "after.json")
        )


def compare(
    before: BenchmarkResult,
    after: BenchmarkResult,
    configs: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
) -> Comparison:
    """Pairs two results prompt by prompt.

    Args:
        configs: the resolved configs of the two runs, if there are any; what differs is listed.

    Raises:
        DinaError: the results have other prompts, seeds or scoring rules, so that pairs would mean nothing.
    """
    _check_same(before, after)
    tags = before.tags
    further = {f"{tag}/{name}": (tag, name) for tag in tags for name in before.score_names}
    scored = {name: _pair(before, after, tag, key) for name, (tag, key) in further.items()}
    return Comparison(
        before=before,
        after=after,
        overall=_pair_overall(before, after),
        categories={tag: _pair(before, after, tag, "score") for tag in tags},
        further={name: score for name, score in scored.items() if score.before.n},
        guards={name: _pair(before, after, None, f"guards/{name}") for name in before.guard_names},
        unique_ratio_kept=_ratio(after.pictures.unique_ratio, before.pictures.unique_ratio),
        colour_similarity=histogram_similarity(before.pictures.colours, after.pictures.colours),
        config_diff=diff_configs(*configs) if configs else [],
    )


def diff_configs(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, before, after) of all leaves that differ; a key that is absent counts as None."""
    first, second = dict(_leaves(before)), dict(_leaves(after))
    keys = [*first, *(key for key in second if key not in first)]
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def _check_same(before: BenchmarkResult, after: BenchmarkResult) -> None:
    if before.label != after.label:
        raise DinaError(
            f"Scored by different rules: {before.label!r} and {after.label!r}. Evaluate both again."
        )
    for key in ("pictures", "answers"):
        drawn = before.settings.get(key), after.settings.get(key)
        if drawn[0] != drawn[1]:
            raise DinaError(
                f"The {key} of the two results were drawn differently ({drawn[0]} and {drawn[1]}). "
                "Evaluate both with the same sampling."
            )
    first = {row.sample: (row.seed, row.prompt) for row in before.rows}
    second = {row.sample: (row.seed, row.prompt) for row in after.rows}
    if first == second:
        return
    if first.keys() != second.keys():
        odd = min(first.keys() ^ second.keys())
        raise DinaError(
            f"The two results hold different samples (prompt {odd[0]!r}, sample {odd[1]} is only in one). "
            "Evaluate both with the same prompts and samples_per_prompt."
        )
    odd = next(key for key in first if first[key] != second[key])
    raise DinaError(
        f"Prompt {odd[0]!r} has another seed or text in the second result. "
        "Evaluate both with the same prompts and the same seed."
    )


def _common(
    before: BenchmarkResult, after: BenchmarkResult, tag: str | None, key: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Prompt id -> mean over the samples that have the number on both sides."""
    first, second = before.values(tag, key), after.values(tag, key)
    both = [sample for sample in first if sample in second]
    return prompt_means({s: first[s] for s in both}), prompt_means({s: second[s] for s in both})


def _pair(before: BenchmarkResult, after: BenchmarkResult, tag: str | None, key: str) -> PairedScore:
    first, second = _common(before, after, tag, key)
    x, y = np.array(list(first.values())), np.array(list(second.values()))
    expected = before.values(tag, key).keys() | after.values(tag, key).keys()
    if key == "score":
        expected |= {row.sample for row in before.rows if tag is None or row.tag == tag}
    left_out = len({prompt for prompt, _ in expected} - first.keys())
    return PairedScore(mean_interval(x), mean_interval(y), paired_interval(x, y), left_out)


def _pair_overall(before: BenchmarkResult, after: BenchmarkResult) -> PairedScore:
    pairs = {tag: _common(before, after, tag, "score") for tag in before.averaged}
    x = {tag: list(pair[0].values()) for tag, pair in pairs.items()}
    y = {tag: list(pair[1].values()) for tag, pair in pairs.items()}
    if not any(x.values()):
        return PairedScore(NO_DATA, NO_DATA, NO_DATA)
    difference = paired_stratified_interval(x, y)
    return PairedScore(stratified_interval(x), stratified_interval(y), difference)


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        return [
            leaf
            for key, value in tree.items()
            for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, tree)]


def _ratio(after: float, before: float) -> float:
    return after / before if before and not math.isnan(before) else math.nan


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
