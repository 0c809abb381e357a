"""The curves of a run: which metrics share a panel. Their words and healthy ranges are those of the metric table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from markupsafe import Markup

from dina.eval.charts import Line, heat_map, line_chart
from dina.eval.metric_table import Metric, MetricSection, find, named, row, sections
from dina.eval.runs import Curve, running_mean

PALETTE = 6
LEVELS = 8
MOST_LINES = 12


class Curves(Protocol):
    """Where panels take their numbers from: a run that was read whole, or one that is read as it grows."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def held_out(self) -> frozenset[str]:
        """Names of the rewards that are watched and not trained on."""
        ...

    def curve(self, name: str) -> Curve: ...


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        metrics: rows of the metric table; the first one's words, unit and healthy range are the panel's.
        note: one sentence under the title.
        log, zero, top: of the vertical axis, see ``line_chart``.
        kind: ``lines``; ``reward`` has the mean of a few steps and the deviation as a band; ``heat`` is a heat
            map with a row per name; ``each`` is a chart per name.
        rewards: take the rewards that are trained on, or the held-out ones, alone.
        smooth: draw the mean of a few steps, where single steps are noise.
        shares: leave out names that go beyond 1, which would press the others flat.
        absent: why it may have nothing to show.
    """

    title: str
    metrics: tuple[str, ...]
    note: str = ""
    log: bool = False
    zero: bool = False
    top: float | None = None
    kind: Literal["lines", "reward", "heat", "each"] = "lines"
    rewards: Literal["all", "trained", "held_out"] = "all"
    shares: bool = False
    smooth: bool = False
    absent: str = ""

    @property
    def row(self) -> Metric:
        return row(self.metrics[0])

    def names(self, curves: Curves) -> list[str]:
        """The names of a run that belong here."""
        found = [name for pattern in self.metrics for name in named(pattern, curves.names)]
        if self.rewards != "all":
            held_out = self.rewards == "held_out"
            found = [name for name in found if (name.split("/")[1] in curves.held_out) == held_out]
        if self.shares:
            found = [name for name in found if not any(value > 1 for value in curves.curve(name).y)]
        return found[:MOST_LINES]


PANELS: dict[str, tuple[Panel, ...]] = {
    "learning": (
        Panel("Reward", ("reward",), kind="reward"),
        Panel("Reward by task", ("task/<task>/reward",), smooth=True),
        Panel("Held-out scores during the run", ("eval/overall", "eval/<tag>"), absent="data.eval_steps is 0"),
        Panel("Reward by source", ("rewards/<reward>/mean",), rewards="trained", smooth=True),
        Panel(
            "Held-out rewards",
            ("rewards/<reward>/mean",),
            note="Logged and never trained on: if they fall while the others rise, the reward is being gamed.",
            rewards="held_out",
            smooth=True,
            absent="no reward of the recipe is held out",
        ),
        Panel("Parts of the rewards", ("rewards/<reward>/<part>",), shares=True, smooth=True),
        Panel("Sequences kept", ("filter/kept",), top=1.0),
        Panel(
            "Groups without signal, failed scores",
            ("frac_reward_zero_std", "rewards/<reward>/fail_rate"),
            note="Groups whose samples all have one reward teach nothing; failed scores are never counted as zero.",
            zero=True,
        ),
        Panel("Groups replaced", ("refill/replaced", "refill/left", "refill/drawn"), zero=True),
    ),
    "gaming": (Panel("Guards", tuple(f"guards/{name}" for name in (
        "dark_share", "edge_density", "color_entropy", "jpeg_size", "unique_ratio", "diversity", "excess_objects",
        "excess_text",
    )), kind="each"),),
    "completions": (
        Panel(
            "Completion length",
            ("completions/mean_length", "completions/min_length", "completions/max_length"),
        ),
        Panel("Completion length by task", ("task/<task>/mean_length",)),
        Panel("Cut samples", ("completions/clipped_ratio",), zero=True),
    ),
    "entropy": (
        Panel("Entropy by level", ("level_<level>/entropy", "text/entropy"), zero=True),
        Panel("Entropy, all actions", ("entropy",), zero=True),
        Panel("Entropy by task", ("task/<task>/entropy",), zero=True),
        Panel(
            "Entropy of the sequences",
            ("sequence_entropy/mean", "sequence_entropy/max", "sequence_entropy/std"),
            note="What the entropy filter compares.",
            zero=True,
        ),
    ),
    "mismatch": (
        Panel("Largest |Δp|", ("mismatch/max_prob_diff", "mismatch/mean_prob_diff"), log=True),
        Panel(
            "Distribution of |Δp|",
            ("mismatch/hist/<decade>",),
            note="Each sequence by its worst action; darker where more sequences are.",
            kind="heat",
        ),
        Panel("Sequences over a threshold", ("mismatch/frac_over_<threshold>", "mismatch/frac_non_finite"), zero=True),
        Panel(
            "Difference of log-probabilities by level", ("level_<level>/logp_diff", "text/logp_diff"), zero=True
        ),
        Panel(
            "Importance weights",
            tuple(f"sampling/importance_sampling_ratio/{name}" for name in ("mean", "min", "max")),
        ),
        Panel(
            "Effective sample size",
            (
                "sampling/importance_sampling_ratio/effective_sample_size",
                "sampling/importance_sampling_ratio/frac_outside",
            ),
            zero=True,
            top=1.0,
        ),
        Panel(
            "Probe after a weight sync",
            ("probe/mean_logp_diff", "probe/max_logp_diff"),
            log=True,
            absent="in one process the sampler computes with the learner's weights",
        ),
    ),
    "filters": (
        Panel("Sequences dropped, by reason", ("filter/<filter>/dropped", "mismatch/frac_non_finite"), zero=True),
        Panel("Sequences kept by task", ("task/<task>/kept",), top=1.0),
        Panel(
            "Reward of kept and dropped sequences", ("filter/<filter>/reward_kept", "filter/<filter>/reward_dropped")
        ),
    ),
    "update": (
        Panel("Gradient norm", ("grad_norm",), log=True),
        Panel("Clipped actions", ("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"), zero=True),
        Panel("Clipped actions by level", ("level_<level>/clip_ratio", "text/clip_ratio"), zero=True),
        Panel("Ratio to the step's start", ("ratio/mean", "ratio/max")),
        Panel(
            "KL to the reference",
            ("kl", "level_<level>/kl", "text/kl"),
            zero=True,
            absent="algorithm.beta is 0, so there is no reference",
        ),
        Panel("Updates", ("updates/taken", "updates/skipped"), zero=True),
        Panel("Loss", ("policy_loss",)),
        Panel("Learning rate", ("learning_rate",)),
    ),
    "time": (
        Panel("Time per step", ("step_time", "timing_s/<phase>"), zero=True),
        Panel("Time of each reward", ("rewards/<reward>/seconds",), zero=True),
        Panel("Tokens per step", ("num_tokens",)),
    ),
    "queue": (
        Panel("Staleness", ("staleness/mean", "staleness/max"), zero=True),
        Panel("Workers replaced", ("faults/<kind>",), zero=True, absent="there are no workers in one process"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A panel with its chart; ``row`` has the words."""

    title: str
    row: Metric
    chart: Markup


@dataclass(frozen=True)
class DrawnSection:
    """Charts that answer one question."""

    title: str
    intro: str
    charts: list[Markup]


def run_sections(curves: Curves) -> list[DrawnSection]:
    """All sections of the report that have at least one curve."""
    drawn = []
    for section in sections():
        charts = [panel.chart for panel in draw_section(section, curves)]
        if charts:
            drawn.append(DrawnSection(section.title, section.intro, charts))
    return drawn


def draw_section(section: MetricSection, curves: Curves, marks: Marks = lambda names: ()) -> list[Drawn]:
    """The panels of a section that have something to show.

    Args:
        marks: steps to point at in a chart of these names.
    """
    return [drawn for panel in PANELS[section.key] for drawn in _draw(panel, curves, marks)]


def missing(section: MetricSection, curves: Curves) -> list[tuple[str, str]]:
    """(title, why) of panels that have nothing to show for a reason."""
    return [(p.title, p.absent) for p in PANELS[section.key] if p.absent and not p.names(curves)]


Marks = Callable[[Sequence[str]], Sequence[float]]


def _draw(panel: Panel, curves: Curves, marks: Marks) -> list[Drawn]:
    names = panel.names(curves)
    if panel.kind == "each":
        drawn = []
        for name in names:
            row = find(name)
            assert row is not None
            title = row.title(name).capitalize()
            drawn.append(Drawn(title, row, _lines(panel, row, title, [name], curves, marks)))
    elif panel.kind == "reward":
        drawn = [Drawn(panel.title, panel.row, _reward(curves, names, marks))]
    elif panel.kind == "heat":
        rows = [_line(name, 0, curves.curve(name)) for name in names]
        drawn = [
            Drawn(
                panel.title,
                panel.row,
                heat_map(panel.title, rows, unit="share of sequences", note=panel.note),
            )
        ]
    else:
        drawn = [Drawn(panel.title, panel.row, _lines(panel, panel.row, panel.title, names, curves, marks))]
    return [entry for entry in drawn if entry.chart]


def _lines(
    panel: Panel, row: Metric, title: str, names: Sequence[str], curves: Curves, marks: Marks
) -> Markup:
    drawn = [curves.curve(name) for name in names]
    window = max((smoothing(len(curve.y)) for curve in drawn), default=1) if panel.smooth else 1
    lines = [
        _line(name, number, smooth(curve, window))
        for number, (name, curve) in enumerate(zip(names, drawn, strict=True))
    ]
    return line_chart(
        title,
        lines,
        unit="" if row.unit == "share" else row.unit,
        note=" ".join(filter(None, [panel.note, f"Mean of {window} points." if window > 1 else ""])),
        percent=row.unit == "share",
        log=panel.log,
        zero=panel.zero,
        top=panel.top,
        limits=(row.low, row.high),
        marks=marks(names),
    )


def smoothing(points: int) -> int:
    """How many points are averaged, where single ones are noise."""
    return max(1, points // 15)


def smooth(curve: Curve, window: int) -> Curve:
    """Means of the last ``window`` points, of the extremes too."""
    if window == 1:
        return curve
    low, high = (
        None if values is None else running_mean(values, window) for values in (curve.low, curve.high)
    )
    return Curve(curve.x, running_mean(curve.y, window), low, high)


def _line(name: str, number: int, curve: Curve) -> Line:
    row = find(name)
    assert row is not None
    band = (curve.low, curve.high) if curve.low is not None and curve.high is not None else None
    color, dash = f"var(--series-{number % PALETTE})", "" if number < PALETTE else "2 3"
    if name.startswith("level_"):
        color, dash = f"var(--level-{int(name[6:].split('/')[0]) % LEVELS})", ""
    elif name.startswith("text/"):
        color, dash = "var(--text-channel)", "5 3"
    return Line(row.title(name), curve.x, curve.y, color, band=band, dash=dash)


def _reward(curves: Curves, names: Sequence[str], marks: Marks) -> Markup:
    if not names:
        return Markup("")
    curve = curves.curve("reward")
    spread = curves.curve("reward_std") if "reward_std" in curves.names else Curve((), ())
    by_step = dict(zip(spread.x, spread.y, strict=True))
    window = smoothing(len(curve.y))
    mean = running_mean(curve.y, window)
    std = running_mean([by_step.get(step, math.nan) for step in curve.x], window)
    band = ([m - s for m, s in zip(mean, std, strict=True)], [m + s for m, s in zip(mean, std, strict=True)])
    notes = [f"Line: mean of {window} steps; faint: each step." if window > 1 else ""]
    notes += ["Band: ± reward_std." if any(map(math.isfinite, std)) else ""]
    line = Line(
        "reward",
        curve.x,
        mean,
        "var(--after)",
        curve.y if window > 1 else None,
        band if notes[1] else None,
    )
    note = " ".join(filter(None, notes))
    return line_chart("Reward", [line], unit="weighted sum", note=note, marks=marks(names))
