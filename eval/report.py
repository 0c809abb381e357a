"""Writes ``report.html``: one self-contained page about a run, an evaluation, or a comparison of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from dina.errors import DinaError
from dina.eval import panels
from dina.eval.bars import Bar, difference_track, interval_bars
from dina.eval.compare import Comparison, PairedScore
from dina.eval.figures import run_sections
from dina.eval.result import BenchmarkResult
from dina.eval.runs import Run, read_run
from dina.eval.verdict import (
    Finding,
    comparison_findings,
    mean_name,
    percent,
    percent_range,
    points,
    points_range,
    result_findings,
    run_findings,
    title,
)

TEMPLATES = Path(__file__).parent / "templates"
EVALUATION_FOLDER = "evaluation"
SHOWN_PAIRS = 4


def write_report(
    out: Path,
    *,
    run: Path | None = None,
    comparison: Comparison | None = None,
    evaluation: BenchmarkResult | None = None,
    heading: str | None = None,
    per_category: int = 12,
) -> Path:
    """Writes the page to ``out`` (a file, or a folder that gets ``report.html``) and returns its path.

    Whatever is given is shown. A run's folder that holds ``evaluation/before.json`` and ``after.json`` (written by
    ``Comparison.save``) brings its own comparison.

    Args:
        run: a run's folder.
        per_category: picture pairs per category, the first of the prompt file; nothing is selected by score.

    Raises:
        DinaError: nothing to report on, or ``out`` cannot be written.
    """
    if run is not None and not run.is_dir():
        raise DinaError(f"There is no run folder {run}.")
    if run is None and comparison is None and evaluation is None:
        raise DinaError("Nothing to report on: give a run folder, an evaluation or a comparison.")
    if run is not None and comparison is None and (run / EVALUATION_FOLDER / "after.json").is_file():
        comparison = Comparison.load(run / EVALUATION_FOLDER)
    path = out if out.suffix == ".html" else out / "report.html"
    page = render_report(read_run(run) if run else None, comparison, evaluation, heading, per_category)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DinaError(f"Cannot write the report {path}: {error.strerror}.") from error
    return path


def render_report(
    run: Run | None,
    comparison: Comparison | None,
    evaluation: BenchmarkResult | None,
    heading: str | None = None,
    per_category: int = 12,
) -> str:
    """The page as text. All words from prompts, rewards, configs and logs are escaped."""
    results = [comparison.before, comparison.after] if comparison else [evaluation] if evaluation else []
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        heading=heading or _heading(run, results),
        label=results[0].label if results else "",
        names=[result.name for result in results],
        findings=_findings(run, comparison, evaluation),
        tiles=_tiles(run, comparison),
        bars=_bars(results),
        scores=_score_rows(comparison) if comparison else [],
        single=_single_rows(evaluation) if evaluation and not comparison else [],
        shown_pairs=SHOWN_PAIRS,
        groups=panels.pair_groups(results, per_category),
        guards=panels.guard_rows(comparison, results),
        variety=panels.variety_rows(comparison, results),
        colours=[(result.name, panels.colour_bar(result.pictures)) for result in results],
        failures=panels.failures(results),
        sections=run_sections(run) if run else [],
        dropped=panels.dropped(run) if run else [],
        film=panels.film(run.samples) if run else [],
        run=run,
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run and run.config else "",
        config_diff=comparison.config_diff if comparison else [],
        environment=panels.flat(run.environment) if run else [],
        settings=panels.flat(results[0].settings) if results else [],
        metrics=panels.metric_rows(run) if run else [],
    )


def _heading(run: Run | None, results: Sequence[BenchmarkResult]) -> str:
    if run is not None:
        return run.folder.resolve().name
    return " → ".join(result.name or "model" for result in results)


def _findings(
    run: Run | None, comparison: Comparison | None, evaluation: BenchmarkResult | None
) -> list[Finding]:
    found = comparison_findings(comparison) if comparison else []
    found += result_findings(evaluation) if evaluation and not comparison else []
    return found + (run_findings(run) if run else [])


def _tiles(run: Run | None, comparison: Comparison | None) -> list[tuple[str, str, list[str]]]:
    """(name, number, notes) of the few numbers that matter most."""
    tiles = []
    if comparison:
        shown = [(mean_name(comparison.averaged), comparison.overall)]
        shown += [
            (title(tag), comparison.categories[tag])
            for tag in ("text_rendering", "vqa")
            if tag in comparison.categories
        ]
        for name, score in shown:
            if score.difference.n:
                span = points_range(score.difference)
                change = f"{percent(score.before.mean)} → {percent(score.after.mean)}"
                tiles.append((name, points(score.difference.mean), [change, f"95 % {span}"]))
        if not math.isnan(comparison.unique_ratio_kept):
            tiles.append(
                (
                    "Unique pictures",
                    f"{comparison.unique_ratio_kept:.2f}×",
                    ["after / before", "healthy from 0.9"],
                )
            )
    if run and run.metrics:
        tiles.append(("Training steps", f"{run.metrics[-1].get('step', len(run.metrics)):g}", ["logged"]))
    return tiles


def _bars(results: Sequence[BenchmarkResult]) -> Markup:
    if not results:
        return Markup("")
    colors = ["var(--before)", "var(--after)"] if len(results) == 2 else ["var(--after)"]
    tags = results[0].tags
    rows = [
        (title(tag), [Bar(r.name, r.category(tag), color) for r, color in zip(results, colors, strict=True)])
        for tag in tags
    ]
    if results[0].averaged:
        overall = [Bar(r.name, r.overall, color) for r, color in zip(results, colors, strict=True)]
        rows.insert(0, (mean_name(results[0].averaged), overall))
    return interval_bars(rows)


def _score_rows(comparison: Comparison) -> list[dict[str, Any]]:
    scores = [*comparison.categories.values(), *comparison.further.values()]
    bounds = [abs(v) for s in scores for v in (s.difference.low, s.difference.high) if not math.isnan(v)]
    reach = max([0.05, *bounds])
    rows = []
    for tag, score in comparison.categories.items():
        rows.append(_score_row(title(tag), score, reach, ""))
        for name, further in comparison.further.items():
            if name.startswith(f"{tag}/"):
                rows.append(_score_row(name.removeprefix(f"{tag}/").replace("_", " "), further, reach, "sub"))
    if comparison.averaged:
        rows.append(_score_row(mean_name(comparison.averaged), comparison.overall, reach, "total"))
    return rows


def _score_row(name: str, score: PairedScore, reach: float, kind: str) -> dict[str, Any]:
    better = "good-text" if score.difference.mean > 0 else "bad-text"
    return {
        "name": name,
        "kind": kind,
        "before": percent(score.before.mean),
        "after": percent(score.after.mean),
        "difference": points(score.difference.mean),
        "range": points_range(score.difference),
        "state": better if score.clear else "open-text",
        "track": difference_track(score.difference, reach),
        "prompts": score.difference.n,
        "left_out": score.left_out,
    }


def _single_rows(result: BenchmarkResult) -> list[tuple[str, str, str, str, int]]:
    rows = []
    for tag in result.tags:
        for name in (None, *result.score_names):
            score = result.category(tag, name or "score")
            if name is None or score.n:
                shown = title(tag) if name is None else name.replace("_", " ")
                rows.append(
                    (shown, "sub" if name else "", percent(score.mean), percent_range(score), score.n)
                )
    if result.averaged:
        overall = result.overall
        name = mean_name(result.averaged)
        rows.append((name, "total", percent(overall.mean), percent_range(overall), overall.n))
    return rows
