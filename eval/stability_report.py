"""``report.html`` of a stability study: the curves of the paper's figure 18 for every arm, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from dina.errors import DinaError
from dina.eval.charts import Line, line_chart
from dina.eval.report import TEMPLATES
from dina.eval.runs import Run, running_mean
from dina.eval.stability import BASELINE, RunSummary, Study, findings, sets_alone
from dina.eval.tables import number
from dina.eval.verdict import percent

_PALETTE = 6
_CHARTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("Entropy", "entropy", "nats", {"zero": True}),
    ("Gradient norm", "grad_norm", "", {"log": True}),
    (
        "Sequences with any |Δp| above 0.01",
        "mismatch/frac_over_0.01",
        "share",
        {"percent": True, "zero": True},
    ),
    ("Sequences with any |Δp| above 0.1", "mismatch/frac_over_0.1", "share", {"percent": True, "zero": True}),
    ("Sequences with any |Δp| above 0.5", "mismatch/frac_over_0.5", "share", {"percent": True, "zero": True}),
    ("Mean |Δp|", "mismatch/mean_prob_diff", "probability", {"log": True}),
    ("Reward", "reward", "", {}),
    ("Sequences kept", "filter/kept", "share", {"percent": True}),
)


@dataclass(frozen=True)
class _Group:
    """Arms that fit into one chart, the baseline first."""

    title: str
    charts: list[Markup]


@dataclass(frozen=True)
class _Setting:
    name: str
    changes: str
    groups: list[_Group]
    table: list[list[str]]


def write_stability_report(study: Study, path: Path) -> Path:
    """Writes the page, without outside requests, and returns its path.

    Raises:
        DinaError: it cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("stability.html").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        study=study,
        findings=findings(study),
        columns=_COLUMNS,
        settings=[_setting(study, name) for name in study.settings],
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DinaError(f"Cannot write the report {path}: {error.strerror}.") from error
    return path


def _setting(study: Study, setting: str) -> _Setting:
    arms = [name for name in study.arms if study.of(setting, name)]
    groups = [
        _Group(title, charts)
        for title, chosen in _families(study, arms).items()
        if (charts := _charts(study, setting, chosen))
    ]
    table = [_cells(name, study.of(setting, name)) for name in arms]
    return _Setting(setting, ", ".join(study.settings[setting]) or "no change", groups, table)


def _families(study: Study, arms: Sequence[str]) -> dict[str, list[str]]:
    """Arms by what they do, each with the baseline to compare with. A sweep is a family for each key, to which arms
    that set this key alone belong as well."""
    families: dict[str, list[str]] = {}
    for name in arms:
        if name == BASELINE:
            continue
        changes = study.arms[name]
        titles = [] if name in study.swept else ["Filters" if _filters(changes) else "Corrections"]
        titles += [f"Values of {key}" for key in study.swept_keys if sets_alone(changes, key)]
        for title in titles:
            families.setdefault(title, [BASELINE] if BASELINE in arms else []).append(name)
    return families or ({"Without correction": list(arms)} if arms else {})


def _charts(study: Study, setting: str, arms: Sequence[str]) -> list[Markup]:
    charts = [
        line_chart(title, _lines(study, setting, arms, metric), unit=unit, note=_note(study), **options)
        for title, metric, unit, options in _CHARTS
    ]
    dropped = [
        Line(
            f"{name}, {which}: {kind}" if len(_filters(study.arms[name])) > 1 else f"{name}: {kind}",
            *_mean_over_seeds(study, setting, name, f"filter/{which}/reward_{kind}"),
            color,
            dash=dash,
        )
        for index, name in enumerate(arms)
        for which in _filters(study.arms[name])
        for kind, dash in (("kept", ""), ("dropped", "5 3"))
        for color in [f"var(--series-{index % _PALETTE})"]
    ]
    charts.append(line_chart("Reward of what the filters keep and drop", dropped, note=_note(study)))
    return [chart for chart in charts if chart]


def _filters(changes: Sequence[str]) -> list[str]:
    names = {"filters.entropy_k": "entropy", "filters.mismatch_tau": "mismatch"}
    return [names[key] for change in changes if (key := change.partition("=")[0]) in names]


def _lines(study: Study, setting: str, arms: Sequence[str], metric: str) -> list[Line]:
    """One line per arm: the mean over its seeds, with a band from the lowest to the highest."""
    lines = []
    for index, name in enumerate(arms):
        steps, columns = _by_step(_runs(study, setting, name), metric, study.window)
        if not steps:
            continue
        mean = [_mean(column) for column in columns]
        band = ([min(c, default=math.nan) for c in columns], [max(c, default=math.nan) for c in columns])
        color = "var(--ink)" if name == BASELINE else f"var(--series-{index % _PALETTE})"
        lines.append(Line(name, steps, mean, color, band=band, dash="5 3" if name == BASELINE else ""))
    return lines


def _mean_over_seeds(study: Study, setting: str, arm: str, metric: str) -> tuple[list[float], list[float]]:
    steps, columns = _by_step(_runs(study, setting, arm), metric, study.window)
    return steps, [_mean(column) for column in columns]


def _runs(study: Study, setting: str, arm: str) -> list[Run]:
    return [run for (s, a, _), run in study.runs.items() if (s, a) == (setting, arm)]


def _by_step(runs: Sequence[Run], metric: str, window: int) -> tuple[list[float], list[list[float]]]:
    """Steps, and the smoothed values of all seeds at each. A run that ended early has none at later steps."""
    found: dict[float, list[float]] = {}
    for run in runs:
        steps, values = run.series(metric)
        for step, value in zip(steps, running_mean(values, window), strict=True):
            found.setdefault(step, []).extend([value] if math.isfinite(value) else [])
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def _note(study: Study) -> str:
    return f"Running means of {study.window} steps; line: mean over seeds, band: lowest to highest."


_COLUMNS = (
    "arm", "seeds", "exploded", "from step", "reward first", "reward last", "score without faults", "entropy first",
    "entropy most", "gradient norm most", "mean |Δp|", "over 0.1", "kept", "reward dropped", "reward kept",
)  # fmt: skip


def _cells(name: str, runs: Sequence[RunSummary]) -> list[str]:
    at = [s.exploded_at for s in runs if s.exploded_at is not None]
    return [
        name,
        str(len(runs)),
        str(len(at)),
        number(_mean(at)),
        *(number(_mean([getattr(s, key) for s in runs])) for key in ("reward_first", "reward_last", "score")),
        *(
            number(_mean([getattr(s, key) for s in runs]))
            for key in ("entropy_first", "entropy_max", "grad_norm_max")
        ),
        f"{_mean([s.mismatch for s in runs]):.1e}",
        *(percent(_mean([getattr(s, key) for s in runs])) + " %" for key in ("over", "kept")),
        *(number(_mean([getattr(s, key) for s in runs])) for key in ("reward_dropped", "reward_kept")),
    ]


def _mean(values: Sequence[float]) -> float:
    real = [value for value in values if math.isfinite(value)]
    return sum(real) / len(real) if real else math.nan
