"""What went wrong with a run, in words: the alerts are put together to causes, and causes to what follows from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dina.errors import DinaError
from dina.eval.alerts import Alert, AlertWatch, Cause, replay
from dina.eval.runs import Outcome, Run, read_outcome, read_run
from dina.eval.sample_log import Only, Order, SampleRecord
from dina.eval.tables import number

TITLES: dict[Cause, str] = {
    "weights": "The sampler does not draw from the policy that is trained",
    "reward": "A reward fails",
    "explosion": "Explosion: the policy comes apart",
    "collapse": "Collapse: the policy has stopped exploring",
    "signal": "No learning signal",
    "other": "Other signs",
}
SHOWN_SAMPLES = 3
# Which samples show a cause best.
_TELLING: dict[Cause, tuple[Order, Only]] = {
    "weights": ("difference", "all"),
    "explosion": ("difference", "dropped"),
    "reward": ("step", "failed"),
    "other": ("step", "dropped"),
}
_LATER = 5
"""Steps by which a cause may show later than what follows from it."""


@dataclass
class Finding:
    """One cause.

    Attributes:
        evidence: what fired, and what the run's numbers add to it.
        follows: titles of causes that follow from this one, so that curing it should cure them.
        advice: what to try, the first thing first.
    """

    cause: Cause
    evidence: list[str]
    advice: list[str]
    follows: list[Cause] = field(default_factory=list)

    @property
    def title(self) -> str:
        return TITLES[self.cause]


@dataclass
class Diagnosis:
    """What a run's folder says about its health.

    Attributes:
        findings: the causes, the first one first.
        watch: the rules, with everything that fired.
        samples: records to look at.
        outcome: how it ended; None for a run that goes on, or was killed.
    """

    run: Run
    findings: list[Finding]
    watch: AlertWatch
    samples: list[SampleRecord]
    outcome: Outcome | None

    @property
    def healthy(self) -> bool:
        return not self.findings and (self.outcome is None or self.outcome.state != "failed")


def diagnose(folder: Path) -> Diagnosis:
    """Reads a run, finished or not.

    Raises:
        DinaError: the folder is no run's.
    """
    if not folder.is_dir():
        raise DinaError(f"There is no run folder {folder}.")
    run = read_run(folder)
    if not run.metrics and not run.config:
        raise DinaError(f"{folder} is no run's folder: it has neither metrics.jsonl nor config.yaml")
    watch = replay(run)
    findings = find_causes(watch.alerts, run)
    return Diagnosis(run, findings, watch, _samples(run, findings), read_outcome(folder))


def find_causes(alerts: Sequence[Alert], run: Run) -> list[Finding]:
    """The causes behind alerts; what follows from another cause is named there and does not stand alone."""
    by_cause: dict[Cause, list[Alert]] = {}
    for alert in alerts:
        by_cause.setdefault(alert.rule.cause, []).append(alert)
    began = {cause: min(alert.since for alert in found) for cause, found in by_cause.items()}
    follows: dict[Cause, list[Cause]] = {
        cause: _follow_from(cause, began) for cause in TITLES if cause in began
    }
    explained = {later for causes in follows.values() for later in causes}
    return [
        Finding(
            cause,
            [*_texts(by_cause[cause]), *_more(cause, by_cause[cause], run)],
            list(dict.fromkeys(alert.rule.advice for alert in by_cause[cause])),
            follows[cause],
        )
        for cause in TITLES
        if cause in began and cause not in explained
    ]


def _follow_from(cause: Cause, began: dict[Cause, int]) -> list[Cause]:
    """Which of the other causes are consequences of ``cause``, given the step at which each first showed."""
    # A wrong sampler makes the policy explode if it was there first; after an explosion, the two sides disagree anyway.
    consequences: dict[Cause, tuple[Cause, ...]] = {
        "weights": ("explosion", "other"),
        "explosion": ("weights", "other"),
        "reward": ("signal", "other"),
        "collapse": ("signal", "other"),
        "signal": ("other",),
        "other": (),
    }
    found = []
    for other in consequences[cause]:
        if other not in began:
            continue
        first = cause in ("collapse", "reward") or began[cause] <= began[other] + _LATER
        if cause == "explosion" and other == "weights":
            first = began[cause] + _LATER < began[other]
        if first:
            found.append(other)
    return found


def _texts(alerts: Sequence[Alert]) -> list[str]:
    """One line for each rule and metric, with the steps at which it held."""
    spans: dict[tuple[str, str], list[Alert]] = {}
    for alert in alerts:
        spans.setdefault((alert.rule.name, alert.metric), []).append(alert)
    lines = []
    for (rule, _), found in spans.items():
        last = found[-1]
        end = "to the end" if last.until is None else f"until step {last.until}"
        again = f", {len(found)} times" if len(found) > 1 else ""
        lines.append(f"step {found[0].since}: {found[0].text} [{rule}, {end}{again}]")
    return lines


def _more(cause: Cause, alerts: Sequence[Alert], run: Run) -> list[str]:
    if cause == "weights":
        return _about_weights(run)
    if cause == "reward":
        return _about_rewards(alerts, run)
    if cause == "signal":
        return _about_signal(run)
    if cause in ("explosion", "collapse"):
        return _about_reward_since(min(alert.since for alert in alerts), run)
    return []


def _about_weights(run: Run) -> list[str]:
    """Whether the two sides never agreed, drifted apart, or samples were known to be old."""
    mismatch = _values(run, "mismatch/mean_prob_diff")
    stale = max(_values(run, "staleness/max"), default=0.0)
    lines = []
    if stale > 0:
        lines.append(
            f"samples were up to {stale:g} updates old (staleness/max), which by itself makes both sides differ"
        )
    if mismatch:
        first, last = mismatch[0], max(mismatch)
        numbers = f"mean |Δp| was {number(first)} in the first step and {number(last)} at most"
        if first > last / 3:
            lines.append(
                f"{numbers}: both sides differed from the start, so look at what they do differently: precision "
                "(run.dtype, quantized weights), temperature, guidance, another checkpoint"
            )
        elif stale == 0:
            lines.append(
                f"{numbers}, although samples are stamped with the newest weights (staleness/max 0): the sampler's "
                "weights stay behind, a weight sync does not arrive"
            )
        else:
            lines.append(f"{numbers}: both sides drift apart")
    return lines


def _about_rewards(alerts: Sequence[Alert], run: Run) -> list[str]:
    lines = []
    for name in dict.fromkeys(alert.metric.split("/")[1] for alert in alerts):
        rates = _values(run, f"rewards/{name}/fail_rate")
        lines.append(
            f"{name} failed on {100 * sum(rates) / len(rates):.0f} % of all samples; these were left out"
        )
        reasons: Counter[str] = Counter()
        for record in run.samples.read(run.samples.select(only="failed")[:200]):
            entry = record.scores.get(name)
            if entry is not None and entry.failed:
                reasons[entry.reason] += 1
        lines += [
            f"{name}: {reason} ({count} of the kept samples)" for reason, count in reasons.most_common(2)
        ]
    return lines


def _about_signal(run: Run) -> list[str]:
    rewards, spread = _values(run, "reward"), _values(run, "reward_std")
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    lines = [
        f"the mean reward of the run is {number(mean)}, its deviation within a step {number(max(spread, default=0.0))}"
    ]
    if max(spread, default=0.0) < 1e-6:
        lines.append("every sample has the same reward, so the reward itself cannot tell them apart")
    return lines


def _about_reward_since(step: int, run: Run) -> list[str]:
    steps, values = run.series("reward")
    known = [(s, v) for s, v in zip(steps, values, strict=True) if not math.isnan(v)]
    before, after = [v for s, v in known if s < step], [v for s, v in known if s >= step]
    if not before or not after:
        return []
    return [
        f"the reward was {number(sum(before[-10:]) / len(before[-10:]))} before step {step} and is "
        f"{number(sum(after[-10:]) / len(after[-10:]))} at the end"
    ]


def _samples(run: Run, findings: Sequence[Finding]) -> list[SampleRecord]:
    """A few that show the first cause."""
    if not findings:
        return []
    order, only = _TELLING.get(findings[0].cause, ("step", "all"))
    numbers = run.samples.select(order, only)
    return run.samples.read((numbers if len(numbers) else run.samples.select(order))[:SHOWN_SAMPLES])


def _values(run: Run, name: str) -> list[float]:
    return [value for value in run.series(name)[1] if not math.isnan(value)]
