"""Reward workers: groups are scored as they come, by whoever is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from dina.rewards.protocol import RewardFailure, SuiteResult
from dina.rl.cluster.pool import Call, Limits, WorkerPool
from dina.rl.cluster.reactor import Reactor
from dina.rl.config import TrainConfig
from dina.rl.roles import reward_suite
from dina.rollout.protocol import Sample


class RewardWorker:
    """The actor: the rewards of the recipe."""

    def open(self, config: TrainConfig) -> None:
        self.suite = reward_suite(config)

    def score(self, samples: Sequence[Sample], step: int) -> SuiteResult:
        return self.suite.score(samples, step)

    def close(self) -> None:
        if hasattr(self, "suite"):
            self.suite.close()


class RewardPool:
    """The role ``Scorer`` over several workers."""

    def __init__(
        self, config: TrainConfig, starts: Sequence[Callable[[], Any]], reactor: Reactor, limits: Limits
    ) -> None:
        self.reactor = reactor
        # By step and group: None until the scores are there.
        self._results: dict[int, dict[int, SuiteResult | None]] = {}
        self.pool = WorkerPool(
            "reward worker", starts, lambda _: [Call("open", lambda: (config,))], reactor, limits
        )

    def submit(self, step: int, group: Sequence[Sample]) -> None:
        results, number = self._results.setdefault(step, {}), group[0].request.group
        results[number] = None
        samples = [_without_log_probs(sample) for sample in group]
        call = Call("score", lambda: (samples, step), lambda scored: results.update({number: scored}))
        self.pool.submit(self.pool.least_busy(), call)

    def collect(self, step: int) -> SuiteResult:
        results = self._results.setdefault(step, {})
        self.reactor.run_until(lambda: None not in results.values())
        del self._results[step]
        return join_results([scored for _, scored in sorted(results.items()) if scored is not None])

    def faults(self) -> dict[str, float]:
        return {"faults/reward_restarts": float(self.pool.take_restarts())}

    def close(self) -> None:
        self.pool.close()


def join_results(parts: Sequence[SuiteResult]) -> SuiteResult:
    """The scores of several groups as those of one batch. ``seconds`` adds up; ``logged`` are means of the means."""
    joined = SuiteResult([], {}, {}, [], {})
    logged: dict[str, list[float]] = {}
    for part in parts:
        offset = len(joined.total)
        joined.total += part.total
        joined.failures += [RewardFailure(f.reward, f.sample_index + offset, f.reason) for f in part.failures]
        for name in part.per_reward:
            joined.per_reward.setdefault(name, []).extend(part.per_reward[name])
            joined.parts.setdefault(name, []).extend(part.parts[name])
            joined.seconds[name] = joined.seconds.get(name, 0.0) + part.seconds[name]
        for name, value in part.logged.items():
            logged.setdefault(name, []).append(value)
    joined.logged = {name: sum(values) / len(values) for name, values in logged.items()}
    return joined


def _without_log_probs(sample: Sample) -> Sample:
    """What a reward can see of a sample: everything but the largest part."""
    nothing = torch.zeros(0)
    return replace(sample, logps=nothing, entropies=nothing)
