"""Console tables of evaluations and comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dina.eval.compare import Comparison, PairedScore
from dina.eval.result import BenchmarkResult
from dina.eval.statistics import Interval
from dina.eval.verdict import (
    Finding,
    comparison_findings,
    mean_name,
    percent,
    percent_range,
    points,
    points_range,
    result_findings,
    title,
)

_STYLES = {"good": "green", "bad": "red", "open": "yellow", "plain": "default"}


def print_result(result: BenchmarkResult, console: Console | None = None) -> None:
    """Categories with intervals, guards, failures and a summary in words."""
    console = console or Console()
    table = Table(title=Text(f"{result.label}  ·  {result.name}"), title_justify="left")
    table.add_column("category")
    for column in ("score %", "95 %", "prompts"):
        table.add_column(column, justify="right")
    for tag in result.tags:
        _result_row(table, title(tag), result.category(tag))
        for name in result.score_names:
            further = result.category(tag, name)
            if further.n:
                _result_row(table, f"  {name}", further, style="dim")
    if result.averaged:
        table.add_section()
        _result_row(table, mean_name(result.averaged), result.overall, style="bold")
    console.print(table)
    _print_findings(console, result_findings(result))
    _print_failures(console, result)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Before, after and paired difference of every category; then the verdict in words."""
    console = console or Console()
    heading = f"{comparison.before.label}  ·  {comparison.before.name} → {comparison.after.name}"
    table = Table(title=Text(heading), title_justify="left")
    table.add_column("category")
    for column in ("before %", "after %", "difference", "95 %", "prompts"):
        table.add_column(column, justify="right")
    for tag, score in comparison.categories.items():
        _paired_row(table, title(tag), score)
        for name, further in comparison.further.items():
            if name.startswith(f"{tag}/"):
                _paired_row(table, "  " + name.removeprefix(f"{tag}/"), further, style="dim")
    if comparison.averaged:
        table.add_section()
        _paired_row(table, mean_name(comparison.averaged), comparison.overall, style="bold")
    console.print(table)
    _print_guards(console, comparison)
    _print_findings(console, comparison_findings(comparison))
    for result in (comparison.before, comparison.after):
        _print_failures(console, result)


def _result_row(table: Table, name: str, score: Interval, style: str = "") -> None:
    table.add_row(name, percent(score.mean), percent_range(score), str(score.n), style=style)


def _paired_row(table: Table, name: str, score: PairedScore, style: str = "") -> None:
    difference = score.difference
    colour = ("green" if difference.mean > 0 else "red") if score.clear else ""
    table.add_row(
        name,
        percent(score.before.mean),
        percent(score.after.mean),
        Text(points(difference.mean), style=colour),
        points_range(difference),
        str(difference.n),
        style=style,
    )


def _print_guards(console: Console, comparison: Comparison) -> None:
    if not comparison.guards:
        return
    table = Table(title="Guards against reward hacking (means over prompts)", title_justify="left")
    table.add_column("statistic")
    for column in ("before", "after", "difference", "95 %"):
        table.add_column(column, justify="right")
    for name, score in comparison.guards.items():
        low, high = number(score.difference.low), number(score.difference.high)
        change = number(score.difference.mean)
        table.add_row(name, number(score.before.mean), number(score.after.mean), change, f"[{low}, {high}]")
    console.print(table)


def number(value: float) -> str:
    """Three significant digits, for statistics that are no shares."""
    return "–" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    for finding in findings:
        console.print(Text("• ", style=_STYLES[finding.kind]) + Text(finding.text))


def _print_failures(console: Console, result: BenchmarkResult) -> None:
    reasons = Counter(row.failure for row in result.failures)
    for reason, count in reasons.most_common(5):
        console.print(Text(f"  {count} × not scored in {result.name}: {reason}", style="red"))
