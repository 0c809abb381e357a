"""The roles in one process: for debugging, tests and small machines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import set_seed

from dina.errors import DinaError
from dina.model.checkpoint import load_checkpoint
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rewards.protocol import SuiteResult
from dina.rewards.suite import RewardSuite
from dina.rl.environment import pick_device
from dina.rl.learner.learner import Learner
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import Deliver, Roles, reward_suite, rollout_sampling
from dina.rollout.faulty_engine import Faults, FaultyEngine
from dina.rollout.protocol import Prompt, Request, Sample
from dina.rollout.torch_engine import TorchEngine


def open_local_roles(config: TrainConfig) -> Roles:
    """The learner and an engine that computes with the learner's own model.

    Raises:
        DinaError: the recipe asks for several learner ranks, or for another environment for a reward.
    """
    for reward in config.rewards:
        if reward.runtime_env is not None:
            raise DinaError(
                f"reward {reward.label!r} has a runtime_env, which a process of its own has; set rl.runner=ray"
            )
    if config.learner.ranks > 1:
        raise DinaError(f"learner.ranks {config.learner.ranks} are processes of their own; set rl.runner=ray")
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    learner = open_learner(config)
    assert learner.checkpoint is not None
    size, dtype, faults = config.rollout.batch_size, config.run.dtype, config.rollout.faults
    rollout: LocalRollout
    if faults is not None:
        rollout = FaultyRollout(FaultyEngine(learner.checkpoint, Faults(**faults.model_dump()), size, dtype))
    else:
        rollout = LocalRollout(TorchEngine(learner.checkpoint, size, dtype))
    suite = reward_suite(config)
    return Roles(rollout, LocalScorer(suite), learner, close=suite.close)


class LocalRollout:
    """An engine of this process; it draws when it is waited for."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]:
        return self.engine.generate(requests, sampling)

    def start(self, requests: Sequence[Request], sampling: SamplingParams, deliver: Deliver) -> LocalDraw:
        return LocalDraw(self.engine, requests, sampling, deliver)

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Only stamps the version: the engine computes with the learner's model."""
        self.engine.update_weights((), version)

    def start_probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> None:
        """Nothing to compare, for the same reason."""

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        self.engine.check_lengths(prompts, sampling)

    def faults(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.engine.close()


class FaultyRollout(LocalRollout):
    """An engine with weights of its own, which are wrong on purpose."""

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.engine.update_weights(tensors, version)


@dataclass
class LocalDraw:
    """Requests that are drawn on ``wait``."""

    engine: TorchEngine
    requests: Sequence[Request]
    sampling: SamplingParams
    deliver: Deliver

    def wait(self) -> None:
        positions = {id(request): position for position, request in enumerate(self.requests)}
        for sample in self.engine.generate(self.requests, self.sampling):
            self.deliver(positions[id(sample.request)], sample)


class LocalScorer:
    """Scores a whole batch at once when it is asked for."""

    def __init__(self, suite: RewardSuite) -> None:
        self.suite = suite
        self._batches: dict[int, list[tuple[float, Sequence[Sample]]]] = {}

    def submit(self, step: int, group: Sequence[Sample]) -> None:
        self._batches.setdefault(step, []).append((time.monotonic(), group))

    def collect(self, step: int) -> SuiteResult:
        batch, now = self._batches.pop(step, []), time.monotonic()
        samples = [sample for _, group in batch for sample in group]
        samples.sort(key=lambda s: (s.request.group, s.request.index))
        result = self.suite.score(samples, step=step)
        if batch:
            waited = sum(now - ready for ready, _ in batch) / len(batch)
            result.queue_time = dict.fromkeys(result.per_reward, waited)
        return result

    def faults(self) -> dict[str, float]:
        return {}


def open_learner(config: TrainConfig) -> Learner:
    """The learner of this process, with the checkpoint that it trains."""
    set_seed(config.run.seed)
    path, device = Path(config.model.path), pick_device(config.run.device)
    checkpoint = load_checkpoint(path, device=device)
    reference = load_checkpoint(path, device=device).model if config.algorithm.beta > 0 else None
    return Learner(checkpoint, config, rollout_sampling(config.rollout), reference)
