"""Group-relative advantages (GRPO, Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dina.policies.stats import StatSums

ScaleRewards = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class Advantages:
    """What the group baseline made of the rewards.

    Attributes:
        values: ``[B]``, dtype of the rewards, 0 where ``valid`` is False.
        valid: ``[B]`` bool. A sample is valid if it has a reward and so has another of its group. The
            loss must leave the others out (``keep & valid``), or they would only swell its denominators.
        stats: TRL's ``reward``, ``reward_std`` (sample deviation over the batch) and
            ``frac_reward_zero_std`` (share of valid samples whose group's rewards are all equal).
    """

    values: Tensor
    valid: Tensor
    stats: StatSums


def group_advantages(
    rewards: Tensor, groups: Tensor, scale_rewards: ScaleRewards = "group", eps: float = 1e-4
) -> Advantages:
    """``A_i = (R_i - mean of i's group) / (std + eps)``, with TRL's choice of deviations.

    Args:
        rewards: ``[B]`` float. NaN (or an infinity) means "no reward": the sample is left out of its group's
            baseline and deviation.
        groups: ``[B]`` int, equal for the samples of one prompt, in any order.
        scale_rewards: what ``std`` is the sample deviation (n - 1) of: the ``group``'s rewards or all of the
            ``batch``; ``none`` does not divide (Dr. GRPO, arXiv 2503.20783).
        eps: added to the deviation.

    A group whose rewards are all equal carries no signal: its advantages are exactly 0.
    """
    if scale_rewards not in get_args(ScaleRewards):
        raise ValueError(f"scale_rewards is {scale_rewards!r}; it must be one of {get_args(ScaleRewards)}")
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards and groups must both be [B]; got {tuple(rewards.shape)}, {tuple(groups.shape)}"
        )
    scored = rewards.isfinite()
    values = rewards.double().masked_fill(~scored, 0.0)
    _, member = groups.unique(return_inverse=True)
    counts = _sum_by_group(scored.double(), member)
    mean = _sum_by_group(values, member) / counts.clamp_min(1)
    centred = (values - mean).masked_fill(~scored, 0.0)
    std = (_sum_by_group(centred.square(), member) / (counts - 1).clamp_min(1)).sqrt()
    valid = scored & (counts >= 2)
    flat = torch.isclose(std, torch.zeros_like(std))
    batch_std = _std(values[scored])

    advantages = centred
    if scale_rewards == "group":
        advantages = centred / (std + eps)
    elif scale_rewards == "batch":
        advantages = centred / (batch_std + eps)
    advantages = advantages.masked_fill(~valid | flat, 0.0)

    stats = StatSums()
    stats.add_mean("reward", rewards, scored)
    stats.add_sum("reward_std", batch_std * scored.sum(), scored.sum())
    stats.add_mean("frac_reward_zero_std", flat.double(), valid)
    return Advantages(advantages.to(rewards.dtype), valid, stats)


def _sum_by_group(values: Tensor, member: Tensor) -> Tensor:
    """``[B]``: for every sample, the sum of ``values`` over its group."""
    return torch.zeros_like(values).index_add_(0, member, values)[member]


def _std(values: Tensor) -> Tensor:
    return values.std() if values.numel() > 1 else values.new_zeros(())
