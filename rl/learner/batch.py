"""What a step gives the learner and what it gets back, as tensors and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dina.model.stream import TokenStream
from dina.policies.filters import Drop, WorstAction
from dina.policies.stats import StatSums


@dataclass
class Batch:
    """The samples of a step as tensors. ``B`` sequences, ``T`` positions, ``C`` channels.

    Attributes:
        stream: right-padded.
        sampler_logp: ``[B, T, C]`` as the rollout engine reported it.
        rewards: ``[B]``, NaN where a sample has none.
        advantages: ``[B]``.
        valid: ``[B]`` bool, False where a sample has no advantage.
        actor_logp, actor_entropy: ``[B, T, C]`` under the trainer's weights before the update.
        reference_logp: ``[B, T, C]`` under the reference policy, if there is one.
    """

    stream: TokenStream
    sampler_logp: Tensor
    rewards: Tensor
    advantages: Tensor
    valid: Tensor
    actor_logp: Tensor
    actor_entropy: Tensor
    reference_logp: Tensor | None = None

    def select(self, rows: Tensor) -> Batch:
        ref = None if self.reference_logp is None else self.reference_logp[rows]
        return Batch(
            self.stream.select(rows),
            self.sampler_logp[rows],
            self.rewards[rows],
            self.advantages[rows],
            self.valid[rows],
            self.actor_logp[rows],
            self.actor_entropy[rows],
            ref,
        )


@dataclass
class Dropped:
    """A sequence that a filter left out of the update: its row in the step's batch, and why."""

    row: int
    drop: Drop


@dataclass(frozen=True)
class Measured:
    """What the filters measured of a sequence, whether they dropped it or not.

    Attributes:
        entropy: mean of its actions in nats, NaN without an action.
        worst: the action whose probability differs most between sampler and actor.
    """

    entropy: float
    worst: WorstAction | None


@dataclass
class UpdateResult:
    """What the updates of one step did; the same on every rank.

    Attributes:
        stats: merged over all micro-batches, minibatches, iterations and ranks.
        metrics: plain numbers that are not means over actions (gradient norm, learning rate, counts).
        dropped: sequences the filters left out in the first iteration.
        steps: optimizer steps taken.
        skipped: minibatches without anything to learn from.
        seconds: of ``compare`` and ``update``, as ``learn`` took them on this rank.
        measured: what the filters measured in the first iteration, by row of the step's batch.
    """

    stats: StatSums
    metrics: dict[str, float]
    dropped: list[Dropped]
    steps: int
    skipped: int
    seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[int, Measured] = field(default_factory=dict)
