"""What the pages of one run show, as plain JSON data; charts are finished HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dina.eval.alerts import Alert, first_steps
from dina.eval.bars import stacked_bar
from dina.eval.dashboard.live import LiveRun
from dina.eval.figures import PALETTE, Drawn, draw_section, missing
from dina.eval.metric_table import MetricSection, Page, find, sections
from dina.eval.sample_log import Only, Order, SampleRecord
from dina.eval.tables import number

PER_PAGE = 60
# What a step consists of, one after the other; other phases lie inside of these.
PHASES = ("generate", "score", "compare", "update", "sync")
RECENT = 0.1

Json = dict[str, Any]


def run_line(run: LiveRun) -> Json:
    """A run in the list of runs: where it stands and whether it is well."""
    active = [alert for alert in run.alerts if alert.until is None]
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": run.state,
        "error": run.error,
        "step": run.step,
        "max_steps": run.max_steps,
        "samples": len(run.samples),
        "complete": run.complete,
        "version": run.version,
        "health": "sick" if active or run.state == "failed" else "look" if run.alerts else "well",
        "alerts": len(run.alerts),
    }


def curve_page(run: LiveRun, page: Page, first: int | None = None, last: int | None = None) -> Json:
    """The sections of a page with their panels, for a range of steps."""
    view, marks = run.view(first, last), first_steps(run.alerts)

    def marks_of(names: Sequence[str]) -> list[float]:
        return [step for name in names for step in marks.get(name, ())]

    shown = []
    for section in sections():
        if section.page == page:
            panels = [_panel(section, drawn) for drawn in draw_section(section, view, marks_of)]
            absent = [f"{title}: {why}" for title, why in missing(section, view)]
            if panels or absent:
                text = {"key": section.key, "title": section.title, "intro": section.intro}
                shown.append(text | {"panels": panels, "absent": absent})
    data: Json = {"version": run.version, "sections": shown}
    if page == "overview":
        data |= {"tiles": _tiles(run), "verdict": verdict(run)}
    if page == "speed":
        data["bar"] = str(_time_bar(run))
    return data


def verdict(run: LiveRun) -> Json:
    """The health of a run in words, with everything that fired, what holds now first."""
    alerts = sorted(run.alerts, key=lambda alert: (alert.until is not None, -alert.since))
    active = sum(alert.until is None for alert in alerts)
    if run.state == "failed":
        kind, title = "bad", "The run failed"
    elif active:
        kind, title = "bad", f"{active} rule{'s' if active > 1 else ''} of health broken now"
    elif alerts:
        kind, title = "open", "Well now; not all the time"
    elif not run.step:
        kind, title = "plain", "Nothing logged yet"
    else:
        kind, title = "good", f"Well: no rule of health was broken in {run.step} steps"
    return {"kind": kind, "title": title, "error": run.error, "alerts": [_alert(alert) for alert in alerts]}


def sample_page(
    run: LiveRun,
    order: Order = "step",
    only: Only = "all",
    offset: int = 0,
    limit: int = PER_PAGE,
    steps: tuple[int, int] | None = None,
) -> Json:
    """A page of samples."""
    numbers = run.samples.select(order, only, steps=steps)
    shown = numbers[offset : offset + limit]
    return {
        "version": run.version,
        "total": len(numbers),
        "offset": offset,
        "samples": [_card(int(n), record) for n, record in zip(shown, run.samples.read(shown), strict=True)],
    }


def sample(run: LiveRun, position: int) -> Json | None:
    """Everything about one sample; ``None`` if there is no such."""
    for record in run.samples.read([position]):
        # A seed has more digits than JavaScript's numbers.
        return {**asdict(record), "number": position, "verdict": _verdict(record), "seed": str(record.seed)}
    return None


def reference(run: LiveRun | None) -> list[Json]:
    """The metric table by section, with the newest values of a run."""
    names = run.store.names if run else []
    found: dict[str, list[str]] = {}
    for name in names:
        if (row := find(name)) is not None:
            found.setdefault(row.name, []).append(name)
    return [
        {
            "key": section.key,
            "title": section.title,
            "intro": section.intro,
            "metrics": [
                {
                    "name": metric.name,
                    "meaning": metric.meaning,
                    "over": metric.over,
                    "unit": metric.unit,
                    "healthy": metric.healthy,
                    "values": [
                        {"name": name, "value": number(_number(run.store.last.get(name)))}
                        for name in found.get(metric.name, ())
                        if run is not None
                    ],
                }
                for metric in section.metrics
            ],
        }
        for section in sections()
    ]


def _panel(section: MetricSection, drawn: Drawn) -> Json:
    return {
        "key": f"{section.key}/{drawn.title}",
        "title": drawn.title,
        "html": str(drawn.chart),
        "shows": drawn.row.meaning,
        "healthy": drawn.row.healthy,
        "over": drawn.row.over,
        "metric": drawn.row.name,
    }


def _tiles(run: LiveRun) -> list[Json]:
    store = run.store
    tiles = []
    for title, name, percent, note in (
        ("Reward", "reward", False, "mean of the last tenth"),
        ("Held-out score", "eval/overall", True, "latest evaluations"),
        ("Sequences kept", "filter/kept", True, "by both filters"),
        ("Groups with signal", "frac_reward_zero_std", True, "rewards differ"),
        ("Entropy", "entropy", False, "nats per action"),
        ("Step", "step_time", False, "seconds, last tenth"),
    ):
        value = store.tail_mean(name)
        if name == "frac_reward_zero_std":
            value = 1 - value
        if math.isfinite(value):
            text = f"{100 * value:.1f} %" if percent else number(value)
            tiles.append({"title": title, "value": text, "note": note})
    return tiles


def _time_bar(run: LiveRun) -> str:
    means = [(phase, run.store.tail_mean(f"timing_s/{phase}", RECENT)) for phase in PHASES]
    parts = [
        (phase, seconds, f"var(--series-{i % PALETTE})")
        for i, (phase, seconds) in enumerate(means)
        if math.isfinite(seconds)
    ]
    rest = run.store.tail_mean("step_time", RECENT) - sum(seconds for _, seconds, _ in parts)
    if math.isfinite(rest) and rest > 0:
        parts.append(("other", rest, "var(--before)"))
    return stacked_bar(parts)


def _alert(alert: Alert) -> Json:
    row = find(alert.metric)
    page = next((s.page for s in sections() if row in s.metrics), "overview")
    return {
        "rule": alert.rule.name,
        "title": alert.rule.title,
        "text": alert.text,
        "advice": alert.rule.advice,
        "metric": alert.metric,
        "since": alert.since,
        "until": alert.until,
        "page": page,
    }


def _card(position: int, record: SampleRecord) -> Json:
    worst = record.worst
    return {
        "number": position,
        "step": record.step,
        "prompt": record.prompt,
        "tag": record.tag,
        "answer": record.answer,
        "reward": record.reward,
        "picture": record.picture,
        "question": record.question,
        "difference": worst.difference if worst else None,
        "verdict": _verdict(record),
    }


def _verdict(record: SampleRecord) -> Json:
    """What became of a sample, in words."""
    if record.drops:
        return {
            "kind": "bad",
            "title": "dropped",
            "reasons": [_drop_text(record, i) for i in range(len(record.drops))],
        }
    failed = [name for name, entry in record.scores.items() if entry.failed]
    if record.reward is None:
        why = f"{', '.join(failed)} failed" if failed else "no reward applies"
        return {
            "kind": "open",
            "title": "no reward",
            "reasons": [f"{why}, so that it was left out of the update"],
        }
    return {"kind": "good", "title": "kept", "reasons": []}


def _drop_text(record: SampleRecord, position: int) -> str:
    drop = record.drops[position]
    value, threshold = (number(_number(entry)) for entry in (drop.value, drop.threshold))
    if drop.reason == "entropy":
        return (
            f"entropy filter: the mean entropy of its actions is {value} nats, above {threshold} "
            "(minibatch mean + k deviations)"
        )
    if drop.reason == "mismatch":
        return f"mismatch filter: one action's |p_sampler − p_actor| is {value}, above τ = {threshold}"
    return "an entropy or a log-probability is no finite number"


def _number(value: float | None) -> float:
    return math.nan if value is None else value
