"""Several runs side by side: seeds of one recipe as a band, other recipes as lines, pictures in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dina.eval.charts import Line, line_chart
from dina.eval.compare import Comparison, diff_configs
from dina.eval.dashboard.live import LiveRun
from dina.eval.dashboard.store import Grid
from dina.eval.figures import PALETTE, smooth, smoothing
from dina.eval.metric_table import Metric, find, named
from dina.eval.panels import pair_groups
from dina.eval.report import EVALUATION_FOLDER
from dina.eval.tables import number

COMPARED = (
    "reward",
    "eval/overall",
    "rewards/<reward>/mean",
    "entropy",
    "level_<level>/entropy",
    "text/entropy",
    "grad_norm",
    "mismatch/max_prob_diff",
    "filter/kept",
    "frac_reward_zero_std",
    "kl",
    "guards/unique_ratio",
    "completions/mean_length",
    "step_time",
)
MOST_PAIRS, LONGEST = 12, 120
_ABSENT = "absent"
_LOG = ("grad_norm", "mismatch/max_prob_diff")
# What tells seeds of one recipe apart, and what has no influence on the numbers.
_SEEDS = ("run.seed", "run.output_dir", "run.run_name")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[LiveRun]
    color: str


def arms(runs: Sequence[LiveRun]) -> list[Arm]:
    """Runs grouped by recipe, in the order given; a run without a config stands alone."""
    groups: list[list[LiveRun]] = []
    for run in runs:
        alike = (group for group in groups if run.config and not _differences(group[0], run))
        group = next(alike, None)
        groups.append([run]) if group is None else group.append(run)
    return [
        Arm(
            group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more",
            group,
            f"var(--series-{i % PALETTE})",
        )
        for i, group in enumerate(groups)
    ]


def compare_page(runs: Sequence[LiveRun]) -> dict[str, Any]:
    """Curves, a table of the last values, differing settings and picture pairs."""
    groups = arms(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.store.names))
    chosen = [name for pattern in COMPARED for name in named(pattern, names)]
    steps = (
        np.unique(np.concatenate([run.store.steps for run in runs])) if runs else np.empty(0, dtype=np.int64)
    )
    panels = [panel for name in chosen if len(steps) and (panel := _panel(name, groups, Grid.over(steps)))]
    return {
        "version": "|".join(run.version for run in runs),
        "arms": [
            {"name": arm.name, "runs": [r.name for r in arm.runs], "color": arm.color} for arm in groups
        ],
        "panels": panels,
        "table": [_row(name, groups) for name in chosen],
        "settings": _settings(groups),
        "pairs": _pairs(runs),
    }


def before_after(run: LiveRun, per_category: int = 4) -> list[dict[str, Any]]:
    """Picture pairs of the evaluations before and after the run, if it has them in ``evaluation/``."""
    folder = run.folder / EVALUATION_FOLDER
    if not (folder / "after.json").is_file():
        return []
    comparison = Comparison.load(folder)
    return [asdict(group) for group in pair_groups([comparison.before, comparison.after], per_category)]


def _panel(name: str, groups: Sequence[Arm], grid: Grid) -> dict[str, Any] | None:
    row = find(name)
    assert row is not None
    lines = [line for arm in groups if (line := _band(name, arm, grid)) is not None]
    chart = line_chart(
        name,
        lines,
        unit="" if row.unit == "share" else row.unit,
        percent=row.unit == "share",
        log=row.name in _LOG,
        limits=(row.low, row.high),
    )
    if not chart:
        return None
    words = {"shows": row.meaning, "healthy": row.healthy, "over": row.over, "metric": row.name}
    return {"key": f"compare/{name}", "title": name, "html": str(chart), **words}


def _band(name: str, arm: Arm, grid: Grid) -> Line | None:
    """Mean over the runs of an arm, with the least and the largest run as its band; a few points are averaged."""
    curves = [run.store.curve(name, grid) for run in arm.runs]
    curves = [smooth(curve, smoothing(len(curve.y)) // 2 or 1) for curve in curves if curve.x]
    if not curves:
        return None
    if len(curves) == 1:
        curve = curves[0]
        band = (curve.low, curve.high) if curve.low is not None and curve.high is not None else None
        return Line(arm.name, curve.x, curve.y, arm.color, band=band)
    values: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in zip(curve.x, curve.y, strict=True):
            values.setdefault(x, []).append(y)
    xs = sorted(values)
    low, high = [min(values[x]) for x in xs], [max(values[x]) for x in xs]
    return Line(arm.name, xs, [fmean(values[x]) for x in xs], arm.color, band=(low, high))


def _row(name: str, groups: Sequence[Arm]) -> dict[str, Any]:
    row = find(name)
    assert row is not None
    return {"name": name, "better": row.better, "values": [_value(name, row, arm) for arm in groups]}


def _value(name: str, row: Metric, arm: Arm) -> str:
    """Mean of the last tenth, ± the deviation over runs."""
    ends = [end for run in arm.runs if not math.isnan(end := run.store.tail_mean(name))]
    if not ends:
        return "–"
    factor, unit = (100, " %") if row.unit == "share" else (1, "")
    spread = f" ± {number(factor * stdev(ends))}" if len(ends) > 1 else ""
    return f"{number(factor * fmean(ends))}{spread}{unit}"


def _differences(one: LiveRun, other: LiveRun) -> list[tuple[str, Any, Any]]:
    """(key, ours, theirs) of the settings that differ; none is one that a run of an older version does not have."""
    differing = [key for key, _, _ in diff_configs(one.config, other.config) if key not in _SEEDS]
    values = [(key, _setting(one.config, key), _setting(other.config, key)) for key in differing]
    return [entry for entry in values if _ABSENT not in entry[1:]]


def _setting(config: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return _ABSENT
        config = config[part]
    return config


def _settings(groups: Sequence[Arm]) -> list[dict[str, Any]]:
    """Every key in which an arm differs from the first, with the value of each."""
    first = groups[0].runs[0] if groups else None
    found: dict[str, list[Any]] = {}
    for place, arm in enumerate(groups):
        for key, ours, theirs in _differences(first, arm.runs[0]) if first else ():
            found.setdefault(key, [ours] * len(groups))[place] = theirs
    return [{"key": key, "values": [_short(value) for value in values]} for key, values in found.items()]


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _pairs(runs: Sequence[LiveRun]) -> list[dict[str, Any]]:
    """Pictures that the first two runs drew for the same prompt in the same step, newest first."""
    if len(runs) < 2:
        return []
    ours, theirs = (_pictures(run) for run in runs[:2])
    both = sorted(ours.keys() & theirs.keys(), reverse=True)[:MOST_PAIRS]
    return [
        {
            "step": key[0],
            "prompt": ours[key]["prompt"],
            "sides": [
                {"run": run.name, **found[key]} for run, found in zip(runs, (ours, theirs), strict=False)
            ],
        }
        for key in both
    ]


def _pictures(run: LiveRun) -> Mapping[tuple[int, str, int], dict[str, Any]]:
    """By step, prompt and number, of the last steps that have pictures."""
    steps = run.samples.steps()[-8:].tolist()
    if not steps:
        return {}
    records = run.samples.read(run.samples.select(steps=(steps[0], steps[-1]), pictures=True)[:400])
    return {
        (record.step, record.id, record.index): {
            "picture": record.picture,
            "reward": record.reward,
            "prompt": record.prompt,
        }
        for record in records
    }
