"""What a reward is, how it is named in a recipe, and what a scored batch looks like.

A reward is any callable in TRL's style, sync or async::

    def reward(prompts, completions, **columns) -> list[float | None]

Every argument is a list with one entry per sample. Those on offer, to take by name or in ``**columns``:

* ``prompts``: the prompt texts; ``completions``: one assistant message per sample, ``[{"role": "assistant",
  "content": text}]`` for an answer, ``content = [{"type": "image", "image": PIL.Image}]`` for a picture;
* ``generated_images``: the drawn picture or ``None``; ``images``: the pictures in the prompt (TRL's name);
* ``completion_ids``: the sampled token ids;
* every column of the data set, ``None`` where a row lacks it;
* no lists: ``log_extra(name, values)``, ``log_metric(name, value)``, ``trainer_state`` (``.global_step``).

A reward applies to the rows that have every argument which it names without a default. ``None`` says "does
not apply". An exception, a time-out, a wrong length or anything that is no finite number is a failure. Instead of
a number, an entry may be a :class:`Score`, a mapping with ``score`` and sub-scores, or an exception, which fails
its sample alone.

A class is instantiated once, with the recipe's ``kwargs``, and may have

* ``setup()``: called once before the first batch, for what is slow or may fail, such as loading weights;
* ``requires``: names of columns without which it does not apply, beside the arguments without a default;
* ``batch_size``: at most so many samples per call, unless the recipe says otherwise;
* ``close()``: called at the end.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

LogExtra = Callable[[str, list[Any]], None]
LogMetric = Callable[[str, float], None]
Parts = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """A score with what it is made of.

    Attributes:
        value: the score; ``None``: does not apply.
        reason: why, in words for people.
        parts: sub-scores; the numeric ones become metrics.
    """

    value: float | None
    reason: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)


Entry = float | Score | Mapping[str, Any] | Exception | None
Reward = Callable[..., Sequence[Entry] | Awaitable[Sequence[Entry]]]


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a recipe.

    Attributes:
        use: built-in name, name of an entry point of the group ``dina.rewards``, ``package.module:attr``, or
            ``./file.py:attr``.
        name: what metrics call it; by default the last part of ``use``.
        weight: factor in the weighted sum. 0 logs the reward and never trains on it.
        required: a failed score stops the run.
        on_error: ``exclude`` leaves a sample with a failed score out of training, ``raise`` stops the run.
        timeout: seconds for scoring one batch.
        tasks: apply to samples of these tasks only, e.g. ``["vqa"]``; all by default.
        clip: ``(low, high)``: the score is limited to these before it is summed.
        normalise: ``group`` sums ``(score - mean) / std`` of the prompt's samples instead of the score (GDPO).
        batch_size: at most so many samples per call; by default all at once, or what the class says.
        held_out: logged and never trained on, as with weight 0; not even a prompt's own weights change that.
        watches: the trained rewards whose rise is suspicious when this held-out one falls; by default all.
        isolate: run in a process of its own, which is killed at the time-out.
        memory_gib: limit for that process; implies ``isolate``.
        kwargs: arguments of the class, or bound to the function.
    """

    use: str
    name: str = ""
    weight: float = 1.0
    required: bool = False
    on_error: Literal["exclude", "raise"] = "exclude"
    timeout: float = 60.0
    tasks: Sequence[str] | None = None
    clip: Sequence[float] | None = None
    normalise: Literal["none", "group"] = "none"
    batch_size: int | None = None
    held_out: bool = False
    watches: Sequence[str] | None = None
    isolate: bool = False
    memory_gib: float | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or self.use.rsplit(":", 1)[-1]

    @property
    def fatal(self) -> bool:
        return self.required or self.on_error == "raise"

    @property
    def trained(self) -> bool:
        return self.weight != 0 and not self.held_out

    @property
    def own_process(self) -> bool:
        return self.isolate or self.memory_gib is not None


def watched_pairs(specs: Sequence[RewardSpec]) -> list[tuple[str, str]]:
    """Every held-out reward with each trained one that it watches, as (trained, held-out) names."""
    trained = [spec.label for spec in specs if spec.trained]
    return [
        (name, spec.label)
        for spec in specs
        if not spec.trained
        for name in trained
        if spec.watches is None or name in spec.watches
    ]


@dataclass(frozen=True)
class RewardFailure:
    """One score that could not be had. ``sample_index`` counts in the scored batch."""

    reward: str
    sample_index: int
    reason: str


@dataclass
class SuiteResult:
    """A scored batch of ``n`` samples; every list has ``n`` entries.

    Attributes:
        total: weighted sum over the rewards that apply; ``None`` if one of them failed or none applies.
        per_reward: raw scores by reward name, ``None`` where it does not apply or failed.
        parts: sub-scores and the ``reason`` in words, as the reward logged them, ``None`` where it did not.
        failures: what failed, why, and for which sample.
        seconds: wall-clock time of each reward.
        queue_time: seconds from a sample's being ready to its reward's beginning, averaged over groups; by reward.
        timed_out: rewards with a call that was left behind.
        logged: scalars that rewards logged through ``log_metric``, named ``rewards/<name>/<metric>``.
    """

    total: list[float | None]
    per_reward: dict[str, list[float | None]]
    parts: dict[str, list[Parts | None]]
    failures: list[RewardFailure]
    seconds: dict[str, float]
    logged: dict[str, float] = field(default_factory=dict)
    queue_time: dict[str, float] = field(default_factory=dict)
    timed_out: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """``rewards/<name>/{mean,std,applied,fail_rate,seconds,queue_time}`` and the mean of every numeric part.

        ``applied`` and ``fail_rate`` are shares of all samples. ``std`` is over the scores that exist, with
        the ``n - 1`` denominator of TRL's; ``mean`` and ``std`` are left out where no score exists.
        """
        out: dict[str, float] = dict(self.logged)
        for name, scores in self.per_reward.items():
            n = max(len(scores), 1)
            values = [score for score in scores if score is not None]
            if values:
                out[f"rewards/{name}/mean"] = sum(values) / len(values)
                out[f"rewards/{name}/std"] = _std(values)
            out[f"rewards/{name}/applied"] = len(values) / n
            out[f"rewards/{name}/fail_rate"] = sum(f.reward == name for f in self.failures) / n
            out[f"rewards/{name}/seconds"] = self.seconds[name]
            if name in self.queue_time:
                out[f"rewards/{name}/queue_time"] = self.queue_time[name]
            for part, mean in self.part_means(name).items():
                out[f"rewards/{name}/{part}"] = mean
        return out

    def with_rows(self, rows: Mapping[int, int], other: SuiteResult) -> SuiteResult:
        """This batch with row ``i`` taken from row ``rows[i]`` of ``other``, which the same rewards scored.

        ``seconds`` adds up; ``logged`` stays that of this batch.
        """

        def spliced(mine: list[Any], theirs: list[Any]) -> list[Any]:
            return [theirs[rows[i]] if i in rows else value for i, value in enumerate(mine)]

        place = {new: old for old, new in rows.items()}
        failures = [failure for failure in self.failures if failure.sample_index not in rows]
        failures += [
            replace(failure, sample_index=place[failure.sample_index])
            for failure in other.failures
            if failure.sample_index in place
        ]
        return SuiteResult(
            spliced(self.total, other.total),
            {name: spliced(self.per_reward[name], other.per_reward[name]) for name in self.per_reward},
            {name: spliced(self.parts[name], other.parts[name]) for name in self.parts},
            failures,
            {name: seconds + other.seconds[name] for name, seconds in self.seconds.items()},
            self.logged,
            self.queue_time,
        )

    def part_means(self, name: str) -> dict[str, float]:
        """Mean of each numeric sub-score of one reward over the samples that have it."""
        values: dict[str, list[float]] = {}
        for parts in self.parts.get(name, []):
            for key, value in (parts or {}).items():
                if isinstance(value, Real) and math.isfinite(value):
                    values.setdefault(key, []).append(float(value))
        return {key: sum(found) / len(found) for key, found in values.items()}


def log_parts(log_extra: LogExtra | None, parts: Sequence[Parts | None]) -> None:
    """Hands sub-scores to ``log_extra`` column by column. ``parts`` has one entry per sample."""
    if log_extra is None:
        return
    for key in dict.fromkeys(key for entry in parts for key in entry or {}):
        log_extra(key, [entry.get(key) if entry else None for entry in parts])


def _std(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
