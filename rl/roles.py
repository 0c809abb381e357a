"""Who does what in a step: the roles that the loop works with, in one process or in many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rewards.protocol import SuiteResult
from dina.rewards.suite import RewardSuite
from dina.rl.learner.batch import UpdateResult
from dina.rl.recipe.config import RolloutConfig, TrainConfig
from dina.rollout.protocol import Prompt, Request, RolloutEngine, Sample

Deliver = Callable[[int, Sample], None]


class Pending(Protocol):
    """Work that was given out."""

    def wait(self) -> Any:
        """Returns when it is done, with its result if it has one."""
        ...


class Rollout(RolloutEngine, Protocol):
    """Draws samples. What is started, and every weight update, takes effect in the order of the calls."""

    def start(self, requests: Sequence[Request], sampling: SamplingParams, deliver: Deliver) -> Pending:
        """Begins to draw. ``deliver`` gets the position of a request and its sample, in any order."""
        ...

    def start_probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> Pending | None:
        """Log-probabilities of given streams, a list per engine; ``None`` where there is nothing to compare."""
        ...

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Raises: DinaError: a prompt does not fit the context."""
        ...

    def faults(self) -> dict[str, float]:
        """Metrics of what was lost and done again since the last call."""
        ...


class Scorer(Protocol):
    """Scores samples group by group, while others are still being drawn."""

    def submit(self, step: int, group: Sequence[Sample]) -> None:
        """Hands over a complete group of the batch of ``step``."""
        ...

    def collect(self, step: int) -> SuiteResult:
        """The scores of that batch, ordered by group and by index within the group."""
        ...

    def faults(self) -> dict[str, float]: ...


class LearnerRole(Protocol):
    """Holds the policy that is trained, and its optimizer."""

    def learn(
        self, samples: Sequence[Sample], rewards: Tensor, advantages: Tensor, valid: Tensor, step: int
    ) -> UpdateResult:
        """Compares sampler and actor, filters, and updates the policy. ``rewards``, …: ``[B]``."""
        ...

    def weights(self) -> Any:
        """What ``RolloutEngine.update_weights`` takes."""
        ...

    def log_probs(self, stream: TokenStream) -> Tensor:
        """``[B, T, C]`` of the stream's actions under the weights as they are."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the policy as a checkpoint, and what else the learner needs to continue."""
        ...

    def restore(self, folder: Path) -> None: ...


@dataclass
class Roles:
    """The roles of one run. ``close`` ends all of them."""

    rollout: Rollout
    scorer: Scorer
    learner: LearnerRole
    close: Callable[[], None]


def reward_suite(config: TrainConfig, labels: Collection[str] | None = None) -> RewardSuite:
    """The rewards of a recipe, or those of the given labels, ready to score."""
    chosen = [reward for reward in config.rewards if labels is None or reward.label in labels]
    return RewardSuite([reward.spec() for reward in chosen])


def rollout_sampling(rollout: RolloutConfig) -> SamplingParams:
    """The distribution that a recipe trains on."""
    return SamplingParams(
        temperature=rollout.temperature,
        code_temperature=_per_level(rollout.code_temperature),
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        code_top_k=_per_level(rollout.top_k if rollout.code_top_k is None else rollout.code_top_k),
        code_top_p=rollout.top_p,
        guidance_scale=rollout.guidance_scale,
        max_new_tokens=rollout.max_completion_length,
    )


def _per_level(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
