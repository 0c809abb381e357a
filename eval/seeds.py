"""Pools comparisons over training seeds, and sets kinds of run (GRPO, controls) side by side.

``python -m dina.eval.seeds "GRPO=runs/a-0,runs/a-1" "continued SFT=runs/b-0,runs/b-1"`` prints the table; the
folders are those that ``dina compare --out`` wrote. The first kind is set against every other.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dina.errors import DinaError
from dina.eval.compare import Comparison, Scores
from dina.eval.statistics import (
    Interval,
    paired_two_level_interval,
    run_interval,
    two_level_interval,
)
from dina.eval.verdict import mean_name, percent, points, points_range, title

Columns = dict[str, list[float]]
OVERALL = "overall"


@dataclass(frozen=True)
class PooledScore:
    """One category over all runs of a kind.

    Attributes:
        before, after: means over runs with intervals over runs and prompts.
        gain: ``after - before``, paired by prompt; its interval is over runs and prompts.
        per_run: the gain of each run, in the order given, badly done ones included.
        over_runs: Student's t interval of ``per_run``, which looks at runs alone.
    """

    before: Interval
    after: Interval
    gain: Interval
    per_run: list[float]
    over_runs: Interval

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "gain": self.gain.to_json(),
            "per_run": self.per_run,
            "over_runs": self.over_runs.to_json(),
        }


def pool(comparisons: Sequence[Comparison]) -> dict[str, PooledScore]:
    """Category (and ``overall``, the mean of the categories of drawings) -> score over runs on the same prompts.

    Prompts that any run lacks a score for are left out of all.

    Raises:
        DinaError: no comparison, or comparisons on different prompts.
    """
    before, after = _aligned(comparisons)
    groups = {tag: [tag] for tag in before[0]}
    headline = _headline(comparisons, before[0])
    groups |= {OVERALL: headline} if headline else {}
    return {name: _pooled(before, after, tags) for name, tags in groups.items()}


def gain_over_control(comparisons: Sequence[Comparison], control: Sequence[Comparison]) -> Interval:
    """How much more the overall score gained than in the control's runs, over runs and prompts."""
    before, after = _aligned([*comparisons, *control])
    headline = _headline(comparisons, before[0])
    gains = [
        {tag: [b - a for a, b in zip(x[tag], y[tag], strict=True)] for tag in headline}
        for x, y in zip(before, after, strict=True)
    ]
    return two_level_interval(gains[: len(comparisons)], control=gains[len(comparisons) :])


def markdown_table(arms: Mapping[str, Sequence[Comparison]]) -> str:
    """A table for documents: categories in rows; before, and each kind of run with its gain, in columns."""
    pooled = {name: pool(comparisons) for name, comparisons in arms.items()}
    first = next(iter(pooled.values()))
    headline = _headline(next(iter(arms.values())), first)
    head = ["", "before %", *(f"{name} ({len(arms[name])} runs) %" for name in arms)]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for tag in first:
        shown = f"**{mean_name(headline)}**" if tag == OVERALL else title(tag)
        cells = [_cell(scores[tag]) if tag in scores else "–" for scores in pooled.values()]
        lines.append(_line([shown, percent(first[tag].before.mean), *cells]))
    if OVERALL in first:
        each = [", ".join(points(gain) for gain in scores[OVERALL].per_run) for scores in pooled.values()]
        lines.append(_line(["gain of each run", "", *each]))
    return "\n".join(lines) + "\n"


def _headline(comparisons: Sequence[Comparison], scored: Container[str]) -> list[str]:
    """The categories of drawings that the overall score averages, of those that were scored."""
    return [tag for tag in comparisons[0].averaged if tag in scored]


def _cell(score: PooledScore) -> str:
    return f"{percent(score.after.mean)} ({points(score.gain.mean)} {points_range(score.gain)})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _pooled(before: Sequence[Columns], after: Sequence[Columns], tags: Sequence[str]) -> PooledScore:
    x, y = ([{tag: run[tag] for tag in tags} for run in runs] for runs in (before, after))
    per_run = [_mean(end) - _mean(start) for start, end in zip(x, y, strict=True)]
    return PooledScore(
        before=two_level_interval(x),
        after=two_level_interval(y),
        gain=paired_two_level_interval(x, y),
        per_run=per_run,
        over_runs=run_interval(per_run),
    )


def _aligned(comparisons: Sequence[Comparison]) -> tuple[list[Columns], list[Columns]]:
    """The runs' scores before and after as lists over the prompts that all of them scored."""
    if not comparisons:
        raise DinaError("There is no comparison to pool.")
    pairs = [comparison.paired_scores() for comparison in comparisons]
    prompts = {tuple(sorted({row.sample for row in c.before.rows})) for c in comparisons}
    if len(prompts) > 1 or len({c.before.label for c in comparisons}) > 1:
        raise DinaError(
            "The runs were evaluated on different prompts or by different rules; evaluate them alike."
        )
    common = {
        tag: [p for p in pairs[0][0][tag] if all(p in start[tag] for start, _ in pairs)]
        for tag in pairs[0][0]
    }

    def columns(scores: Scores) -> Columns:
        return {tag: [scores[tag][p] for p in chosen] for tag, chosen in common.items() if chosen}

    return [columns(start) for start, _ in pairs], [columns(end) for _, end in pairs]


def _mean(scores: Columns) -> float:
    return sum(sum(values) / len(values) for values in scores.values()) / len(scores)


def main(arguments: Sequence[str]) -> None:
    """Prints the table of ``name=folder,folder,…`` arguments, and what the first kind gained over the others."""
    arms = {}
    for argument in arguments:
        name, _, folders = argument.partition("=")
        arms[name] = [Comparison.load(Path(folder)) for folder in folders.split(",")]
    print(markdown_table(arms))
    first, *others = arms
    if not arms[first][0].averaged:
        return
    for name in others:
        more = gain_over_control(arms[first], arms[name])
        print(f"{first} gained {points(more.mean)} {points_range(more)} points more than {name}.")
    for name, comparisons in arms.items():
        kept = ", ".join(
            f"unique {c.unique_ratio_kept:.2f}, colours {c.colour_similarity:.2f}" for c in comparisons
        )
        print(f"{name}, pictures after against before: {kept}.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
