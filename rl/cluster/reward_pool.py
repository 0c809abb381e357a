"""Reward workers: groups are scored as they come, by whoever is free. A reward may have workers of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
import torch

from dina.rewards.protocol import RewardFailure, SuiteResult
from dina.rewards.suite import check_timeouts, total_of
from dina.rl.cluster.pool import Call, Limits, WorkerPool
from dina.rl.cluster.reactor import Reactor
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import reward_suite
from dina.rollout.protocol import Sample

Start = Callable[[], Any]


class RewardWorker:
    """The actor: some of the recipe's rewards."""

    def open(self, config: TrainConfig, labels: Sequence[str]) -> None:
        self.suite = reward_suite(config, labels)

    def score(self, samples: Sequence[Sample], step: int, ready: float) -> SuiteResult:
        """Scores a group that was ``ready`` at a time of the clock; ``total`` is left to whoever knows all rewards."""
        # Clocks of two machines differ a little.
        waited = max(time.time() - ready, 0.0)
        result = self.suite.measure(samples, step)
        result.queue_time = dict.fromkeys(result.per_reward, waited)
        return result

    def close(self) -> None:
        if hasattr(self, "suite"):
            self.suite.close()


@dataclass
class PendingGroup:
    """A group that is being scored: what each pool has said, and how many have yet to."""

    samples: Sequence[Sample]
    missing: int
    parts: list[SuiteResult] = field(default_factory=list)


class RewardPool:
    """The role ``Scorer`` over several workers.

    Args:
        starts: what starts each worker of the rewards that have none of their own.
        own: the same for each reward that has, by its label.
    """

    def __init__(
        self,
        config: TrainConfig,
        starts: Sequence[Start],
        reactor: Reactor,
        limits: Limits,
        own: Mapping[str, Sequence[Start]] | None = None,
    ) -> None:
        self.reactor = reactor
        self.specs = {reward.label: reward.spec() for reward in config.rewards}
        self.overlap = config.ray.reward.overlap
        self._held: dict[int, list[Callable[[], None]]] = {}
        self._groups: dict[int, dict[int, PendingGroup]] = {}
        self._timeouts = dict.fromkeys(self.specs, 0)
        own = own or {}
        shared = [label for label in self.specs if label not in own]
        members = [("reward worker", shared, starts)] if shared else []
        members += [(f"worker of reward {label!r}", [label], own[label]) for label in own]
        self.pools = [
            WorkerPool(name, actors, partial(_greet, config, labels), reactor, limits)
            for name, labels, actors in members
        ]

    def submit(self, step: int, group: Sequence[Sample]) -> None:
        send = partial(self._send, step, group, time.time())
        if self.overlap:
            send()
        else:
            self._held.setdefault(step, []).append(send)

    def _send(self, step: int, group: Sequence[Sample], ready: float) -> None:
        number = group[0].request.group
        found = PendingGroup(group, missing=len(self.pools))
        self._groups.setdefault(step, {})[number] = found
        # Written once, whatever the number of pools that read it.
        samples = ray.put([_without_log_probs(sample) for sample in group])
        for pool in self.pools:
            index = pool.least_busy()
            take = partial(self.take, found, pool, index)
            pool.submit(index, Call("score", lambda: (samples, step, ready), take))

    def collect(self, step: int) -> SuiteResult:
        for send in self._held.pop(step, []):
            send()
        groups = self._groups.setdefault(step, {})
        self.reactor.run_until(lambda: all(not group.missing for group in groups.values()))
        del self._groups[step]
        return join_results([self._whole(group) for _, group in sorted(groups.items())])

    def faults(self) -> dict[str, float]:
        return {"faults/reward_restarts": float(sum(pool.take_restarts() for pool in self.pools))}

    def close(self) -> None:
        for pool in self.pools:
            pool.close()

    def take(self, group: PendingGroup, pool: WorkerPool, index: int, part: SuiteResult) -> None:
        """Takes in what worker ``index`` of a pool says of a group.

        Raises:
            DinaError: a reward timed out in three groups in a row.
        """
        group.parts.append(part)
        group.missing -= 1
        for label, scores in part.per_reward.items():
            if label in part.timed_out:
                self._timeouts[label] += 1
                check_timeouts(self.specs[label], self._timeouts[label])
            elif any(score is not None for score in scores):
                self._timeouts[label] = 0
        if part.timed_out:
            # A hung call cannot be ended from within: its thread would stay, with all that it holds.
            pool.renew(index, f"reward {part.timed_out[0]!r} did not come back")

    def _whole(self, group: PendingGroup) -> SuiteResult:
        whole = SuiteResult([], {}, {}, [], {})
        for part in group.parts:
            whole.per_reward |= part.per_reward
            whole.parts |= part.parts
            whole.seconds |= part.seconds
            whole.logged |= part.logged
            whole.queue_time |= part.queue_time
            whole.failures += part.failures
        whole.total = total_of(list(self.specs.values()), group.samples, whole)
        return whole


def join_results(parts: Sequence[SuiteResult]) -> SuiteResult:
    """The scores of several groups as those of one batch.

    ``seconds`` adds up; ``logged`` and ``queue_time`` are means over the groups.
    """
    joined = SuiteResult([], {}, {}, [], {})
    for part in parts:
        offset = len(joined.total)
        joined.total += part.total
        joined.failures += [RewardFailure(f.reward, f.sample_index + offset, f.reason) for f in part.failures]
        for name in part.per_reward:
            joined.per_reward.setdefault(name, []).extend(part.per_reward[name])
            joined.parts.setdefault(name, []).extend(part.parts[name])
            joined.seconds[name] = joined.seconds.get(name, 0.0) + part.seconds[name]
    joined.logged = _means([part.logged for part in parts])
    joined.queue_time = _means([part.queue_time for part in parts])
    return joined


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for numbers in found:
        for name, value in numbers.items():
            values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}


def _greet(config: TrainConfig, labels: Sequence[str], index: int) -> list[Call]:
    return [Call("open", lambda: (config, labels))]


def _without_log_probs(sample: Sample) -> Sample:
    """What a reward can see of a sample: everything but the largest part."""
    nothing = torch.zeros(0)
    return replace(sample, logps=nothing, entropies=nothing)
