"""What became of every row that ``dina prepare`` read: verdicts, counts, and how hard the rows are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from dina.rl.prepare.config import PrepareRecipe

Key = tuple[str, int]
"""A source's label, and the number of a row in it, from 1."""
Outcome = Literal["kept", "invalid", "duplicate", "unscored", "all_right", "all_wrong"]
OUTCOMES: dict[Outcome, str] = {
    "kept": "kept: some rollouts right, some wrong",
    "invalid": "cannot be read, or does not fit",
    "duplicate": "copy of an earlier row",
    "unscored": "a reward failed, or none applies",
    "all_right": "all rollouts right",
    "all_wrong": "all rollouts wrong",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a row stays.

    Attributes:
        pass_rate: mean score of its rollouts; ``None`` where none were drawn or scored.
        detail: why it went, in words.
    """

    outcome: Outcome
    pass_rate: float | None = None
    detail: str = ""


def judge_scores(
    scores: list[float | None], right: float, wrong: float, problem: str | None = None
) -> Verdict:
    """The verdict on a row from the scores of its rollouts, ``None`` for one that could not be scored."""
    if problem is not None:
        return Verdict("invalid", detail=problem)
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return Verdict(
            "unscored", detail=f"{len(scores) - len(known)} of {len(scores)} rollouts have no score"
        )
    pass_rate = sum(known) / len(known)
    if min(known) >= right:
        return Verdict("all_right", pass_rate)
    return Verdict("all_wrong" if max(known) <= wrong else "kept", pass_rate)


@dataclass
class PrepareReport:
    """Counts over all rows.

    Attributes:
        sources: label -> outcome -> rows.
        histogram: number of rows whose pass rate is nearest to 0, 1/n, …, 1, for ``n`` rollouts; copies, invalid and
            unscored rows have none.
        disputed: rows with prompt and picture of another one and another answer; they were judged like any row.
        recipe: what was asked for.
    """

    sources: dict[str, dict[str, int]]
    histogram: list[int]
    disputed: int
    recipe: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, recipe: PrepareRecipe, verdicts: Mapping[Key, Verdict], disputed: int) -> PrepareReport:
        sources = {
            source.label: _counts(v for (label, _), v in verdicts.items() if label == source.label)
            for source in recipe.sources
        }
        histogram = [0] * (recipe.num_rollouts + 1)
        for verdict in verdicts.values():
            if verdict.pass_rate is not None:
                share = min(1.0, max(0.0, verdict.pass_rate))
                histogram[round(share * recipe.num_rollouts)] += 1
        return cls(sources, histogram, disputed, recipe.model_dump(mode="json"))

    def count(self, outcome: Outcome) -> int:
        """Rows with this outcome, over all sources."""
        return sum(counts[outcome] for counts in self.sources.values())

    @property
    def rows(self) -> int:
        return sum(sum(counts.values()) for counts in self.sources.values())

    def to_json(self) -> dict[str, Any]:
        rollouts = len(self.histogram) - 1
        return {
            "rows": self.rows,
            **{outcome: self.count(outcome) for outcome in OUTCOMES},
            "disputed": self.disputed,
            "sources": self.sources,
            "pass_rates": {f"{i}/{rollouts}": count for i, count in enumerate(self.histogram)},
            "recipe": self.recipe,
        }

    def save(self, path: Path) -> None:
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def print_report(report: PrepareReport, console: Console | None = None) -> None:
    """The counts by source, and the histogram of difficulty."""
    console = console or Console()
    table = Table(title=f"{report.rows} rows", title_justify="left")
    table.add_column("")
    for name in report.sources:
        table.add_column(name, justify="right")
    table.add_column("all", justify="right")
    for outcome, words in OUTCOMES.items():
        counts = [str(counts[outcome]) for counts in report.sources.values()]
        table.add_row(words, *counts, str(report.count(outcome)), style="bold" if outcome == "kept" else "")
    console.print(table)
    if report.disputed:
        console.print(
            f"{report.disputed} rows share prompt and picture with another one that has another answer."
        )
    rollouts, most = len(report.histogram) - 1, max(report.histogram) or 1
    console.print(f"How hard: rows by the share of {rollouts} rollouts that the base model gets right")
    for right, count in enumerate(report.histogram):
        bar = "█" * round(40 * count / most)
        console.print(f"  {right}/{rollouts}  {bar} {count}", highlight=False)


def _counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    found = Counter(verdict.outcome for verdict in verdicts)
    return {outcome: found[outcome] for outcome in OUTCOMES}
