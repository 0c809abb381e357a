"""Rules on metrics that say when a run is sick: one list for the log, the dashboard, W&B and ``dina doctor RUN``.

A rule looks at the last few values of the metrics that it is about. Where a healthy value depends on the model and
the task (an entropy, a gradient norm), it compares them with the run's own start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from dina.eval.metric_table import find
from dina.eval.runs import Run, reward_specs
from dina.rewards.held_out import HeldOutWatch
from dina.rewards.protocol import watched_pairs

START = 5
"""Values of a metric, from its first on, whose median is the run's start."""
MOST_ALERTS = 200

Kind = Literal["above", "below", "rises", "falls", "diverges", "broken"]
Cause = Literal["explosion", "collapse", "reward", "weights", "signal", "other"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: key under ``alerts:`` in a recipe.
        title: what it says is wrong.
        metrics: rows of the metric table; every metric that they name is watched by itself.
        kind: ``above`` and ``below`` compare with ``limit``; ``rises`` and ``falls`` with ``limit`` times the run's
            start; ``diverges`` is a trained reward that rises while its held-out partner falls; ``broken`` a value
            that is no finite number.
        limit: see ``kind``.
        steps: so many values in a row.
        least: of ``rises`` and ``falls``, the smallest difference from the start that counts.
        cause: what it is a sign of.
        advice: what to try.
        stop: the run ends when it fires.
        off: it is not looked at.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    kind: Kind
    limit: float
    steps: int
    cause: Cause
    advice: str
    least: float = 0.0
    stop: bool = False
    off: bool = False

    def condition(self, quote: str = "") -> str:
        """In words, for a table of rules; ``quote`` goes around the names of metrics."""
        names = ", ".join(f"{quote}{name}{quote}" for name in self.metrics)
        span = f" for {self.steps} steps" if self.steps > 1 else ""
        words = {
            "above": f"{names} above {self.limit:g}{span}",
            "below": f"{names} below {self.limit:g}{span}",
            "rises": f"{names} above {self.limit:g} × its start{span}",
            "falls": f"{names} below {self.limit:g} × its start{span}",
            "diverges": f"a trained reward rises over {self.steps} steps while a held-out one falls",
            "broken": "a value that is no finite number",
        }
        return words[self.kind]


RULES = (
    Rule(
        "entropy_high",
        "Entropy explodes",
        ("entropy", "level_<level>/entropy", "text/entropy"),
        "rises",
        2.0,
        5,
        "explosion",
        "set filters.entropy_k (3) and filters.mismatch_tau (0.1), lower optim.learning_rate, and go on from a "
        "checkpoint before it began",
        least=0.2,
    ),
    Rule(
        "grad_norm_high",
        "The gradient explodes",
        ("grad_norm",),
        "rises",
        10.0,
        3,
        "explosion",
        "lower optim.learning_rate or optim.max_grad_norm; look at the samples with the largest |Δp|",
        least=1.0,
    ),
    Rule(
        "kl_high",
        "The policy runs away from the reference",
        ("kl",),
        "above",
        1.0,
        5,
        "explosion",
        "raise algorithm.beta or lower optim.learning_rate",
    ),
    Rule(
        "entropy_low",
        "The policy has stopped exploring",
        ("entropy",),
        "falls",
        0.1,
        5,
        "collapse",
        "go back to an earlier checkpoint; lower optim.learning_rate, set algorithm.entropy_coef (0.001) or "
        "algorithm.beta (0.01)",
    ),
    Rule(
        "variety_low",
        "All pictures look alike",
        ("guards/unique_ratio",),
        "falls",
        0.5,
        5,
        "collapse",
        "go back to an earlier checkpoint; set algorithm.beta (0.01) or algorithm.entropy_coef, and add a reward that "
        "one picture cannot please",
    ),
    Rule(
        "held_out_falls",
        "The reward may be gamed",
        ("rewards/<reward>/mean",),
        "diverges",
        2.0,
        20,
        "other",
        "look at the samples with the highest reward; train on the held-out reward too, or clip the gamed one",
    ),
    Rule(
        "reward_failures",
        "A reward fails",
        ("rewards/<reward>/fail_rate",),
        "above",
        0.2,
        3,
        "reward",
        "the samples' reasons say what failed; `dina rewards` scores one sample outside of the run, "
        "rewards.N.required=true stops a run at the first failure",
    ),
    Rule(
        "no_signal",
        "There is nothing to learn from",
        ("frac_reward_zero_std",),
        "above",
        0.9,
        5,
        "signal",
        "prompts are too easy or too hard, or the reward cannot tell samples apart: choose prompts by difficulty "
        "(dina prepare), raise algorithm.num_generations or rollout.temperature, use a graded reward",
    ),
    Rule(
        "kept_low",
        "The filters drop too much",
        ("filter/kept",),
        "below",
        0.5,
        5,
        "other",
        "look at the reasons of the dropped samples; if sampler and trainer agree, raise filters.entropy_k or "
        "filters.mismatch_tau",
    ),
    Rule(
        "no_update",
        "No update is made",
        ("updates/taken",),
        "below",
        0.5,
        3,
        "other",
        "every sequence was dropped or has no reward: look at the samples' verdicts",
    ),
    Rule(
        "mismatch_high",
        "Sampler and trainer disagree",
        ("mismatch/mean_prob_diff",),
        "above",
        0.01,
        3,
        "weights",
        "compare with rollout.engine=torch; set filters.mismatch_tau, and check that both sides have the same "
        "weights, precision and temperature",
    ),
    Rule(
        "staleness_high",
        "Samples are too old",
        ("staleness/max",),
        "above",
        4.0,
        5,
        "weights",
        "lower rl.max_staleness, or give drawing more workers",
    ),
    Rule(
        "not_finite",
        "A number is not finite",
        (),
        "broken",
        0.0,
        1,
        "explosion",
        "go on from the last checkpoint with a lower optim.learning_rate; run.dtype=float32 shows whether it is the "
        "precision",
    ),
    Rule(
        "clip_high",
        "Most updates are clipped away",
        ("clip_ratio/region_mean",),
        "above",
        0.4,
        5,
        "other",
        "lower optim.learning_rate, algorithm.num_iterations or algorithm.minibatches",
    ),
    Rule(
        "answers_cut",
        "Answers are cut",
        ("completions/clipped_ratio",),
        "above",
        0.5,
        5,
        "other",
        "raise rollout.max_completion_length, or reward the end of an answer",
    ),
    Rule(
        "workers_lost",
        "Workers are lost again and again",
        ("faults/<kind>",),
        "above",
        0.5,
        3,
        "other",
        "look at the machine's memory: lower rollout.batch_size or the number of workers",
    ),
)


def configured(settings: Mapping[str, Mapping[str, Any]] | None) -> list[Rule]:
    """The rules with a recipe's ``alerts:``: by name of a rule, any of limit, steps, least, stop and off."""
    changes = {
        name: {k: v for k, v in (entry or {}).items() if v is not None}
        for name, entry in (settings or {}).items()
    }
    return [replace(rule, **changes.get(rule.name, {})) for rule in RULES]


def watch_for(config: Mapping[str, Any]) -> AlertWatch:
    """The rules of a run, given its resolved config."""
    return AlertWatch(configured(config.get("alerts")), watched_pairs(reward_specs(config)))


def replay(run: Run) -> AlertWatch:
    """The rules of a run that was read from its folder, after all its steps."""
    watch = watch_for(run.config)
    for line in run.metrics:
        watch.observe(int(line["step"]), {name: value for name, value in line.items() if name != "step"})
    return watch


@dataclass
class Alert:
    """A rule that fired.

    Attributes:
        metric: that it fired on.
        since, until: steps at which it began and, if it did, ceased to hold.
        value: at ``since``.
        text: what happened, in words.
    """

    rule: Rule
    metric: str
    since: int
    value: float
    text: str
    until: int | None = None


class AlertWatch:
    """Looks at the metrics of one step after the other.

    Args:
        rules: by default all, with their defaults.
        pairs: (trained, held-out) rewards.

    Attributes:
        alerts: everything that fired, in order; the first ``MOST_ALERTS``.
    """

    def __init__(self, rules: Sequence[Rule] | None = None, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self.rules = [rule for rule in (RULES if rules is None else rules) if not rule.off]
        self.alerts: list[Alert] = []
        diverging = [rule for rule in self.rules if rule.kind == "diverges" and pairs]
        self._held_out = [(rule, HeldOutWatch(pairs, rule.steps)) for rule in diverging]
        self._broken: set[str] = set()
        self._watched: dict[str, list[_Watched]] = {}
        self._active: dict[tuple[str, str], Alert] = {}

    @property
    def active(self) -> list[Alert]:
        """What fired and still holds."""
        return list(self._active.values())

    def observe(self, step: int, metrics: Mapping[str, float | None]) -> list[Alert]:
        """Takes in one step, and returns what began to hold in it.

        Args:
            metrics: by name; ``None``, NaN or an infinity is a value that is not finite.
        """
        fresh = []
        for name, value in metrics.items():
            watches = self._watched.get(name)
            if watches is None:
                watches = self._watched[name] = self._watch(name)
            if value is None or not math.isfinite(value):
                fresh += self._look_for_numbers(name, step, value, finite=False)
                continue
            if self._broken and name in self._broken:
                fresh += self._look_for_numbers(name, step, value, finite=True)
            for watched in watches:
                holds = watched.look(value)
                if holds != ((watched.rule.name, name) in self._active):
                    fresh += self._settle(
                        watched.rule, name, step, value, watched.text(value) if holds else ""
                    )
        for rule, held_out in self._held_out:
            known = {name: value for name, value in metrics.items() if value is not None}
            for text in held_out.warnings(known):
                fresh.append(self._keep(Alert(rule, rule.metrics[0], step, math.nan, text, until=step)))
        return fresh

    def _look_for_numbers(self, name: str, step: int, value: float | None, finite: bool) -> list[Alert]:
        (self._broken.discard if finite else self._broken.add)(name)
        text = "" if finite else f"{name} is no finite number"
        broken = [rule for rule in self.rules if rule.kind == "broken"]
        return [alert for rule in broken for alert in self._settle(rule, name, step, value, text)]

    def _settle(self, rule: Rule, name: str, step: int, value: float | None, text: str) -> list[Alert]:
        known = self._active.get((rule.name, name))
        if not text:
            if known is not None:
                known.until = step
                del self._active[rule.name, name]
            return []
        if known is not None:
            return []
        alert = Alert(rule, name, step, math.nan if value is None else value, text)
        self._active[rule.name, name] = alert
        return [self._keep(alert)]

    def _keep(self, alert: Alert) -> Alert:
        if len(self.alerts) < MOST_ALERTS:
            self.alerts.append(alert)
        return alert

    def _watch(self, name: str) -> list[_Watched]:
        row = find(name)
        about = "" if row is None else row.name
        return [
            _Watched(rule, name)
            for rule in self.rules
            if rule.kind not in ("broken", "diverges") and about in rule.metrics
        ]


class _Watched:
    """One metric under one rule."""

    def __init__(self, rule: Rule, name: str) -> None:
        self.rule, self.name = rule, name
        self.start: list[float] = []
        self.in_a_row = 0
        self._up, self._relative = rule.kind in ("above", "rises"), rule.kind in ("rises", "falls")
        self._limit = rule.limit

    def look(self, value: float) -> bool:
        """Takes in the next value; true if the rule holds now."""
        if self._relative and len(self.start) < START:
            self.start.append(value)
            self._limit = self._limit_from(median(self.start))
            return False
        beyond = value > self._limit if self._up else value < self._limit
        self.in_a_row = self.in_a_row + 1 if beyond else 0
        return self.in_a_row >= self.rule.steps

    def _limit_from(self, start: float) -> float:
        limit, least = self.rule.limit * start, self.rule.least
        return max(limit, start + least) if self._up else min(limit, start - least)

    def text(self, value: float) -> str:
        """Why the rule holds."""
        side = "above" if self._up else "below"
        span = f" in {self.rule.steps} steps in a row" if self.rule.steps > 1 else ""
        origin = f" (it began at {median(self.start):.3g})" if self.start else ""
        return f"{self.name} is {value:.3g}, {side} {self._limit:.3g}{span}{origin}"


def first_steps(alerts: Iterable[Alert]) -> dict[str, list[int]]:
    """Metric -> steps at which an alert on it began; to point at in charts."""
    steps: dict[str, list[int]] = {}
    for alert in alerts:
        steps.setdefault(alert.metric, []).append(alert.since)
    return steps
