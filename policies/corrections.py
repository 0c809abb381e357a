"""Truncated and masked importance sampling from the sampler to the actor.

TIS: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training". MIS: Liu et
al. 2025, "When Speed Kills Stability". LongCat-Next (section 9.1) found that both only delay an entropy
explosion; they are here as alternatives to, and baselines for, the mismatch filter. TRL's names of modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dina.policies.losses import MAX_LOG_RATIO
from dina.policies.stats import StatSums

CorrectionMode = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class ImportanceWeights:
    """Multipliers of the surrogate.

    Attributes:
        values: ``[B, T, C]`` float32 without gradient, 0 where there is no action.
        stats: ``sampling/importance_sampling_ratio/…``: min, mean and max of the weights after truncation or
            masking; ``effective_sample_size``, ``(Σw)² / (n Σw²)`` of these weights, 1 where all are equal;
            ``frac_outside``, the share of units whose plain ratio is outside of the bounds (truncated or
            masked, if the mode does so) or not finite. A unit is an action, or in ``sequence_`` modes a sequence.
    """

    values: Tensor
    stats: StatSums


def importance_weights(
    sampler_logp: Tensor,
    actor_logp: Tensor,
    actions: Tensor,
    mode: CorrectionMode = "none",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> ImportanceWeights:
    """``p_actor / p_sampler``, to multiply the surrogate with.

    The loss's denominators stay as they are, so a masked action counts in them with weight 0.

    Args:
        sampler_logp: ``[B, T, C]`` log-probabilities that the rollout engine reported.
        actor_logp: ``[B, T, C]``, the trainer's at the weights that the samples were drawn with.
        actions: ``[B, T, C]`` bool.
        mode: ``token_``: one ratio per action; ``sequence_``: one per sequence, the product over all its
            actions. ``truncate`` clamps it to the bounds, ``mask`` puts 0 where it is outside. ``none`` gives
            weight 1, and the statistics of the plain ratio of each action.
        clip_max, clip_min: the bounds; ``None`` is no bound.

    An action whose log-probability is not finite gets weight 0, in the ``sequence_`` modes its whole
    sequence. Log-ratios are clamped to ±20 before the exponential.
    """
    if mode not in get_args(CorrectionMode):
        raise ValueError(f"mode is {mode!r}; it must be one of {get_args(CorrectionMode)}")
    low = 0.0 if clip_min is None else clip_min
    high = torch.inf if clip_max is None else clip_max
    if low > high:
        raise ValueError(f"clip_min {clip_min} is above clip_max {clip_max}")
    log_ratio = actor_logp.detach().double() - sampler_logp.detach().double()
    usable = actions & log_ratio.isfinite()
    log_ratio = log_ratio.masked_fill(~usable, 0.0)
    units = actions
    if mode.startswith("sequence"):
        units = actions.flatten(1).any(1)[:, None, None]
        usable = units & (usable == actions).flatten(1).all(1)[:, None, None]
        log_ratio = log_ratio.sum((1, 2), keepdim=True)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    outside = (ratio < low) | (ratio > high)
    if mode.endswith("truncate"):
        ratio = ratio.clamp(low, high)
    elif mode.endswith("mask"):
        ratio = ratio.masked_fill(outside, 0.0)
    ratio = ratio.masked_fill(~usable, 0.0)
    stats = _ratio_stats(ratio, outside | ~usable, units)
    values = (usable.double() if mode == "none" else ratio) * actions
    return ImportanceWeights(values.float(), stats)


def _ratio_stats(ratio: Tensor, outside: Tensor, units: Tensor) -> StatSums:
    prefix = "sampling/importance_sampling_ratio"
    stats = StatSums()
    stats.add_min(f"{prefix}/min", ratio, units)
    stats.add_mean(f"{prefix}/mean", ratio, units)
    stats.add_max(f"{prefix}/max", ratio, units)
    stats.add_mean(f"{prefix}/frac_outside", outside.double(), units)
    weight = ratio.masked_fill(~units, 0.0)
    squares = weight.square().sum()
    size = weight.sum().square() / squares.clamp_min(torch.finfo(squares.dtype).tiny)
    stats.add_sum(f"{prefix}/effective_sample_size", size, units.sum())
    return stats
