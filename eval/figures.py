"""The curves of a run: which metrics belong together, what they count, and how to read them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dina.eval.charts import Line, line_chart
from dina.eval.runs import Run, running_mean

PALETTE = 6
LEVELS = 8
_RESERVED = ("mean", "std", "applied", "fail_rate", "seconds")


@dataclass(frozen=True)
class Section:
    """Charts that answer one question."""

    title: str
    intro: str
    charts: list[Markup]


def run_sections(run: Run) -> list[Section]:
    """All sections that have at least one curve."""
    sections = [
        Section(
            "Is it learning?",
            "Rewards are those of prompts that were being trained on; scores on held-out prompts are the evidence.",
            [_evaluation(run), _reward(run), _reward_means(run), _reward_parts(run), _signal(run)],
        ),
        Section(
            "Does the policy stay open?",
            "Entropy by channel: a level that falls to zero has stopped exploring, one that climbs is coming apart.",
            [_by_level(run, "entropy", "Entropy by level", "nats"), _overall_entropy(run), _kl(run)],
        ),
        Section(
            "Is the update sane?",
            "Size of the steps, and how often the clip held them back.",
            [
                _plain(run, "Gradient norm", ["grad_norm"], log=True),
                _by_level(run, "clip_ratio", "Clipped actions by level", "share of actions", percent=True),
                _plain(run, "Loss", ["loss", "policy_loss"]),
                _plain(run, "Learning rate", ["learning_rate"]),
            ],
        ),
        Section(
            "Do sampler and trainer agree?",
            "Difference of both sides' probability of the same action at the same weights.",
            [
                _mismatch(run),
                _over(run),
                _by_level(run, "logp_diff", "Difference of log-probabilities by level", "nats"),
            ],
        ),
        Section(
            "What did the filters drop?",
            "Share of sequences that entered the update, and the reward of those that did not.",
            [_kept(run), _dropped_reward(run)],
        ),
        Section(
            "Is the reward being gamed?",
            "Statistics of the drawn pictures that no reward looks at.",
            _guards(run),
        ),
        Section(
            "Where does the time go?",
            "",
            [
                _plain(run, "Seconds per step", _names(run, r"step_time|timing_s/.+"), unit="s", zero=True),
                _plain(
                    run, "Completion length", _names(run, r"completions/(mean|min|max)_length"), unit="tokens"
                ),
            ],
        ),
    ]
    kept = [Section(s.title, s.intro, [chart for chart in s.charts if chart]) for s in sections]
    return [section for section in kept if section.charts]


def level_color(level: int) -> str:
    return f"var(--level-{level % LEVELS})"


def series_color(index: int) -> str:
    return f"var(--series-{index % PALETTE})"


def _names(run: Run, pattern: str) -> list[str]:
    return [name for name in run.names if re.fullmatch(pattern, name)]


def _evaluation(run: Run) -> Markup:
    names = ["eval/overall", "eval/text_rendering", "eval/vqa"]
    return _plain(run, "Held-out scores during the run", names, rename=_last, percent=True)


def _reward(run: Run) -> Markup:
    if not run.has("reward"):
        return Markup("")
    steps, values = run.series("reward")
    spread = dict(zip(*run.series("reward_std"), strict=True))
    window = max(1, len(values) // 15)
    mean = running_mean(values, window)
    std = running_mean([spread.get(step, math.nan) for step in steps], window)
    band = ([m - s for m, s in zip(mean, std, strict=True)], [m + s for m, s in zip(mean, std, strict=True)])
    notes = [f"Line: mean of {window} steps; faint: each step." if window > 1 else ""]
    notes += ["Band: ± reward_std." if any(map(math.isfinite, std)) else ""]
    line = Line(
        "reward", steps, mean, "var(--after)", values if window > 1 else None, band if notes[1] else None
    )
    return line_chart("Reward", [line], unit="weighted sum", note=" ".join(filter(None, notes)))


def _reward_means(run: Run) -> Markup:
    names = _names(run, r"rewards/[^/]+/mean")
    return _plain(run, "Reward by source", names, rename=lambda name: name.split("/")[1], unit="mean")


def _reward_parts(run: Run) -> Markup:
    names = [name for name in _names(run, r"rewards/[^/]+/[^/]+") if name.rsplit("/", 1)[1] not in _RESERVED]
    shares = [name for name in names if all(not v > 1 for v in run.series(name)[1])]
    return _plain(
        run,
        "Parts of the rewards",
        shares[:PALETTE],
        rename=lambda n: n.removeprefix("rewards/"),
        unit="mean",
    )


def _signal(run: Run) -> Markup:
    names = ["frac_reward_zero_std", *_names(run, r"rewards/[^/]+/fail_rate")]
    note = "Groups whose samples all have one reward teach nothing; failed scores are never counted as zero."

    def name(metric: str) -> str:
        return "groups of one reward" if "/" not in metric else f"{metric.split('/')[1]} failed"

    title = "Groups without signal, failed scores"
    return _plain(run, title, names, rename=name, percent=True, zero=True, note=note)


def _by_level(run: Run, metric: str, title: str, unit: str, percent: bool = False) -> Markup:
    lines = []
    for name in sorted(_names(run, rf"level_\d+/{metric}"), key=_level):
        level = _level(name)
        lines.append(Line(f"level {level}", *run.series(name), level_color(level)))
    text = _names(run, rf"text/{metric}")
    lines += [Line("text", *run.series(name), "var(--text-channel)", dash="5 3") for name in text]
    return line_chart(title, lines, unit=unit, percent=percent, zero=True)


def _level(name: str) -> int:
    return int(name.removeprefix("level_").split("/")[0])


def _overall_entropy(run: Run) -> Markup:
    names = ["entropy", *_names(run, r"(sequence_entropy|entropy)/(mean|max|min)")]
    return _plain(run, "Entropy, all actions", names, unit="nats", zero=True)


def _kl(run: Run) -> Markup:
    levels = sorted(_names(run, r"level_\d+/kl"), key=_level)
    lines = [Line(f"level {_level(name)}", *run.series(name), level_color(_level(name))) for name in levels]
    if run.has("kl"):
        lines.append(Line("all", *run.series("kl"), "var(--ink)", dash="5 3"))
    return line_chart("KL to the reference", lines, unit="nats per action", zero=True)


def _mismatch(run: Run) -> Markup:
    names = ["mismatch/max_prob_diff", *_names(run, r"mismatch/mean_prob_diff")]
    return _plain(run, "Largest |Δp|", names, rename=_last, unit="probability", log=True)


def _over(run: Run) -> Markup:
    names = _names(run, r"mismatch/frac_over_.+")
    note = "Sequences with any action whose |Δp| exceeds the threshold."
    return _plain(
        run,
        "Sequences over a threshold",
        names,
        rename=lambda name: f"over {name.rsplit('_', 1)[1]}",
        percent=True,
        zero=True,
        note=note,
    )


def _kept(run: Run) -> Markup:
    lines = []
    for index, which in enumerate(("entropy", "mismatch")):
        name = f"filter/{which}/dropped"
        if run.has(name):
            steps, dropped = run.series(name)
            lines.append(
                Line(f"{which} filter", steps, [1 - value for value in dropped], series_color(index))
            )
    if run.has("filter/kept"):
        lines.append(Line("both", *run.series("filter/kept"), "var(--ink)", dash="5 3"))
    return line_chart("Sequences kept", lines, unit="share", percent=True, top=1.0)


def _dropped_reward(run: Run) -> Markup:
    lines = []
    for index, which in enumerate(("entropy", "mismatch")):
        for kind, dash in (("kept", ""), ("dropped", "5 3")):
            name = f"filter/{which}/reward_{kind}"
            if run.has(name):
                lines.append(Line(f"{which}: {kind}", *run.series(name), series_color(index), dash=dash))
    return line_chart("Reward of kept and dropped sequences", lines, unit="mean reward")


def _guards(run: Run) -> list[Markup]:
    names = [name for name in run.names if name.startswith("guards/") and not name.endswith("/std")]
    return [
        _plain(run, _last(name).replace("_", " ").capitalize(), [name], rename=_last) for name in names[:9]
    ]


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1].replace("_", " ")


def _plain(
    run: Run,
    title: str,
    names: Sequence[str],
    rename: Callable[[str], str] = str,
    unit: str = "",
    **options: Any,
) -> Markup:
    present = [name for name in names if run.has(name)]
    lines = [Line(rename(name), *run.series(name), series_color(i)) for i, name in enumerate(present)]
    return line_chart(title, lines, unit=unit, **options)
