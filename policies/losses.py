"""The clipped surrogate over all channels of a stream (LongCat-Next, section 6.1, equations 9 to 11).

Shapes: ``B`` sequences, ``T`` positions, ``C = 1 + L`` channels (0 = text, ``1 + l`` = code level ``l``).
``docs/method.md`` writes the objective out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dina.errors import DinaError
from dina.policies.stats import StatSums, channel_name

LossType = Literal["grpo", "dr_grpo", "dapo"]
MAX_LOG_RATIO = 20.0  # keeps exp() finite in float32; e^20 is far outside any clip range


def resolve_channel_weights(
    level_weights: Literal["uniform"] | float | Sequence[float], text_weight: float, levels: int
) -> Tensor:
    """Weights ``w`` ``[C]`` float32 of the channels: ``text_weight``, then one per level.

    Args:
        level_weights: ``"uniform"`` is ``1 / L`` each; a decay factor ``d > 0`` is ``d^l``, divided by its
            sum over levels; ``L`` numbers are taken as they are. The first two add up to 1, so the step size
            depends neither on ``L`` nor on the decay, and a picture weighs as much as a text at weight 1.
        text_weight: weight of channel 0.
        levels: ``L``.

    Raises:
        DinaError: a wrong count, a weight that is negative or not finite, or no weight above 0.
    """
    if isinstance(level_weights, str):
        if level_weights != "uniform":
            raise DinaError(
                f"level_weights is {level_weights!r}. Write uniform, a decay factor, or {levels} numbers."
            )
        weights = [1 / levels] * levels
    elif isinstance(level_weights, Sequence):
        weights = [float(weight) for weight in level_weights]
    else:
        if not 0 < level_weights < math.inf:
            raise DinaError(f"level_weights is {level_weights}; a decay factor must be above 0.")
        decayed = [level_weights**level for level in range(levels)]
        weights = [weight / sum(decayed) for weight in decayed]
    if len(weights) != levels:
        raise DinaError(f"level_weights has {len(weights)} numbers; the model has {levels} code levels.")
    channels = [float(text_weight), *weights]
    if any(not 0 <= weight < math.inf for weight in channels):
        raise DinaError(f"level_weights and text_weight must not be negative; got {weights}, {text_weight}.")
    if not any(channels):
        raise DinaError("level_weights and text_weight are all 0: nothing would be learned.")
    return torch.tensor(channels)


@dataclass(frozen=True)
class LossConfig:
    """Which surrogate. Names and meanings are TRL's.

    Attributes:
        epsilon: the ratio is clipped below at ``1 - epsilon``,
        epsilon_high: and above at ``1 + epsilon_high`` (``None``: the same).
        loss_type: what the sum over a channel's actions is divided by (:class:`Denominators`).
        importance_sampling_level: ``sequence`` replaces every ratio of a sequence by one (GSPO, arXiv
            2507.18071): the exponential of the log-ratios' mean over its actions, each weighted with ``w_c``.
        max_length: constant length in positions that ``dr_grpo`` divides by.
        beta: weight of the KL divergence to the reference policy.
        entropy_coef: weight of the entropy bonus.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None
    loss_type: LossType = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    max_length: int | None = None
    beta: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_type not in ("grpo", "dr_grpo", "dapo"):
            raise ValueError(f"loss_type is {self.loss_type!r}; it must be grpo, dr_grpo or dapo")
        if self.importance_sampling_level not in ("token", "sequence"):
            level = self.importance_sampling_level
            raise ValueError(f"importance_sampling_level is {level!r}; it must be token or sequence")
        if self.loss_type == "dr_grpo" and not self.max_length:
            raise ValueError("dr_grpo divides by a constant length: set max_length")

    @property
    def upper(self) -> float:
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


@dataclass(frozen=True)
class Denominators:
    """What a whole minibatch is divided by: counts of what the filters kept.

    Computed once and handed to every micro-batch, they make the sum of the micro-batches' losses, and so
    of their gradients, equal to those of the minibatch in one piece. They add up (``+``) over parts.

    Attributes:
        sequences: scalar float64, kept sequences that have an action.
        actions: ``[C]`` float64, kept actions of each channel.
    """

    sequences: Tensor
    actions: Tensor

    @classmethod
    def of(cls, actions: Tensor, keep: Tensor) -> Denominators:
        """Args: actions: ``[B, T, C]`` bool; keep: ``[B]`` bool."""
        kept = actions & keep[:, None, None]
        return cls(kept.flatten(1).any(1).sum().double(), kept.sum((0, 1)).double())

    def __add__(self, other: Denominators) -> Denominators:
        return Denominators(self.sequences + other.sequences, self.actions + other.actions)

    @property
    def empty(self) -> bool:
        """True if there is nothing to learn from: take no optimizer step."""
        return not bool(self.sequences > 0)


@dataclass(frozen=True)
class LossOutput:
    """What a micro-batch contributes.

    Attributes:
        loss: scalar, to be minimised. 0 with zero gradients where nothing was kept.
        stats: see ``docs/method.md``; over kept actions only.
        empty: the minibatch has no kept action at all, so the optimizer must not step.
    """

    loss: Tensor
    stats: StatSums
    empty: bool


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    actions: Tensor,
    *,
    weights: Tensor,
    keep: Tensor,
    config: LossConfig,
    denominators: Denominators | None = None,
    is_weights: Tensor | None = None,
    ref_logp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> LossOutput:
    """``-J`` of a micro-batch.

    Args:
        logp: ``[B, T, C]`` log-probabilities of the actions under the policy being trained.
        old_logp: ``[B, T, C]``, the same under the policy at the step's start; no gradient.
        advantages: ``[B]``.
        actions: ``[B, T, C]`` bool. All other entries of the tensors are ignored, NaN included.
        weights: ``[C]`` of :func:`resolve_channel_weights`.
        keep: ``[B]`` bool. Sequences that are not kept count nowhere: not in the sum, its denominators
            or the statistics.
        denominators: of the whole minibatch; ``None`` means that this is all of it.
        is_weights: ``[B, T, C]`` multiplies each action's surrogate (``corrections``); no gradient.
        ref_logp: ``[B, T, C]`` under the reference policy. Needed for ``beta > 0``, logged in any case.
        entropy: ``[B, T, C]`` in nats. Needed for ``entropy_coef != 0``, logged in any case.
    """
    if config.beta > 0 and ref_logp is None:
        raise ValueError("beta > 0 needs ref_logp")
    if config.entropy_coef != 0 and entropy is None:
        raise ValueError("entropy_coef needs entropy")
    kept = actions & keep[:, None, None]
    denominators = denominators or Denominators.of(actions, keep)
    weights = weights.to(logp)
    scale = _scale(kept, weights, denominators, config)
    advantage = advantages.to(logp).masked_fill(~keep, 0.0)[:, None, None]

    ratio = _log_ratio(logp, old_logp.detach(), kept, weights, config).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - config.epsilon, config.upper) * advantage)
    if is_weights is not None:
        surrogate = surrogate * is_weights.detach().to(logp).masked_fill(~kept, 0.0)
    per_action, kl = -surrogate, None
    if ref_logp is not None:
        kl = _k3(logp, ref_logp.detach(), kept)
        per_action = per_action + config.beta * kl
    policy = _weigh(per_action, kept, scale)
    loss = policy
    if entropy is not None and config.entropy_coef:
        bonus = weights / denominators.actions.clamp_min(1).to(logp)
        loss = loss - config.entropy_coef * _weigh(entropy, kept, bonus)

    stats = StatSums()
    # Micro-batches add up to the loss, while means are averaged: undo the division by their sequences.
    stats.add_sum("policy_loss", policy.detach() * denominators.sequences, kept.flatten(1).any(1).sum())
    _add_action_stats(stats, ratio.detach(), advantage, kept, config)
    for name, values in (("kl", kl), ("entropy", entropy)):
        if values is not None:
            _add_by_channel(stats, name, values, kept)
    return LossOutput(loss, stats, denominators.empty)


def _scale(kept: Tensor, weights: Tensor, denominators: Denominators, config: LossConfig) -> Tensor:
    """``[B, C]``: the factor of a sequence's sum over the actions of a channel."""
    sequences = denominators.sequences.clamp_min(1).to(weights)
    if config.loss_type == "dapo":
        return (weights / denominators.actions.clamp_min(1).to(weights)).expand(kept.shape[0], -1)
    if config.loss_type == "dr_grpo":
        assert config.max_length
        return (weights / (sequences * config.max_length)).expand(kept.shape[0], -1)
    return weights / (sequences * kept.sum(1).clamp_min(1))


def _log_ratio(logp: Tensor, old_logp: Tensor, kept: Tensor, weights: Tensor, config: LossConfig) -> Tensor:
    """``[B, T, C]``, 0 outside of ``kept``. Masking comes first: NaN times 0 would still be NaN."""
    log_ratio = logp.masked_fill(~kept, 0.0) - old_logp.masked_fill(~kept, 0.0)
    if config.importance_sampling_level == "sequence":
        weight = kept * weights
        mean = (log_ratio * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(torch.finfo(weight.dtype).tiny)
        log_ratio = mean[:, None, None] * kept
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k3(logp: Tensor, ref_logp: Tensor, kept: Tensor) -> Tensor:
    """``[B, T, C]``: Schulman's k3, an unbiased, non-negative estimate of KL(policy || reference)."""
    difference = ref_logp.masked_fill(~kept, 0.0) - logp.masked_fill(~kept, 0.0)
    difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.expm1() - difference


def _weigh(values: Tensor, kept: Tensor, scale: Tensor) -> Tensor:
    return (values.masked_fill(~kept, 0.0).sum(1) * scale).sum()


def _add_action_stats(
    stats: StatSums, ratio: Tensor, advantage: Tensor, kept: Tensor, config: LossConfig
) -> None:
    low = ((ratio < 1 - config.epsilon) & (advantage < 0)).double()
    high = ((ratio > config.upper) & (advantage > 0)).double()
    stats.add_mean("clip_ratio/low_mean", low, kept)
    stats.add_mean("clip_ratio/high_mean", high, kept)
    stats.add_mean("clip_ratio/region_mean", low + high, kept)
    for channel in range(kept.shape[-1]):
        stats.add_mean(f"{channel_name(channel)}/clip_ratio", (low + high)[..., channel], kept[..., channel])
    stats.add_mean("ratio/mean", ratio, kept)
    stats.add_max("ratio/max", ratio, kept)


def _add_by_channel(stats: StatSums, name: str, values: Tensor, kept: Tensor) -> None:
    stats.add_mean(name, values, kept)
    for channel in range(kept.shape[-1]):
        stats.add_mean(f"{channel_name(channel)}/{name}", values[..., channel], kept[..., channel])
