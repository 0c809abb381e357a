"""The two sequence filters that stop entropy explosion (LongCat-Next, sections 6.1 and 9.1, equation 11).

Both are hard masks on whole sequences: one garbled action spoils all that follows it, and averaged over a
sequence it would not be seen. Their statistics are computed whether or not they filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dina.policies.stats import StatSums, channel_name

THRESHOLDS = (0.01, 0.1, 0.5)
DECADES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Far below what float32 entropies resolve. Without it, equal values could exceed their own rounded mean.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class WorstAction:
    """Where a sequence's sampler and actor disagree most, or the first log-probability that is no number."""

    position: int
    channel: int
    p_sampler: float
    p_actor: float

    def __str__(self) -> str:
        where = f"position {self.position}, {channel_name(self.channel)}"
        return f"{where}: p_sampler {self.p_sampler:.4g}, p_actor {self.p_actor:.4g}"


@dataclass(frozen=True)
class Drop:
    """Why a sequence was dropped.

    Attributes:
        sequence: its row.
        reason: ``entropy``, ``mismatch``, or ``non-finite`` (an entropy or a log-probability is NaN or
            infinite; such a sequence is dropped even where the filter is off).
        value, threshold: the number that was too large, and what it exceeded.
        worst: of the mismatch filter, the action that did it.
    """

    sequence: int
    reason: Literal["entropy", "mismatch", "non-finite"]
    value: float
    threshold: float
    worst: WorstAction | None = None

    def __str__(self) -> str:
        excess = "" if self.reason == "non-finite" else f" {self.value:.4g} > {self.threshold:.4g}"
        where = f" at {self.worst}" if self.worst else ""
        return f"sequence {self.sequence}: {self.reason}{excess}{where}"


@dataclass(frozen=True)
class FilterResult:
    """What one filter decided, and why.

    Attributes:
        name: ``entropy`` or ``mismatch``, the part of the metrics' names.
        keep: ``[B]`` bool.
        values: ``[B]`` float64, what the threshold is compared with: mean action entropy in nats (NaN without
            an action), or largest ``|p_sampler - p_actor|`` (infinite for a non-finite log-probability).
        drops: one record for each dropped sequence.
        stats: statistics of the whole minibatch, dropped sequences included.
        worst: of the mismatch filter, one per sequence; ``None`` for a sequence without actions.
    """

    name: str
    keep: Tensor
    values: Tensor
    drops: tuple[Drop, ...]
    stats: StatSums
    worst: tuple[WorstAction | None, ...] = field(default=())


def entropy_filter(
    entropy: Tensor, actions: Tensor, k: float | None, strata: Tensor | None = None
) -> FilterResult:
    """Drops sequences whose mean action entropy is above the minibatch mean by ``k`` standard deviations.

    Mean and deviation are those of the sequences' values in this minibatch (population deviation, so a
    minibatch of one keeps it). No value of ``n`` can be more than ``sqrt(n - 1)`` deviations above the mean:
    the minibatch must hold more than ``k^2 + 1`` sequences for the filter to fire at all.

    Args:
        entropy: ``[B, T, C]`` in nats.
        actions: ``[B, T, C]`` bool. Sequences without an action are kept and not counted.
        k: ``None`` switches the filter off.
        strata: ``[B]`` int; mean and deviation are taken per stratum. Texts and pictures differ in entropy by
            nature, so that in a mixed minibatch the rarer task would look like the outlier. ``None``: one.
    """
    counts = actions.sum((1, 2))
    values = entropy.detach().double().masked_fill(~actions, 0.0).sum((1, 2)) / counts
    acting = counts > 0
    usable = acting & values.isfinite()
    threshold = torch.full_like(values, torch.inf)
    if k is not None:
        strata = torch.zeros_like(counts) if strata is None else strata
        for stratum in strata.unique():
            members = usable & (strata == stratum)
            if members.any():
                std, mean = torch.std_mean(values[members], correction=0)
                threshold[strata == stratum] = mean + k * std
    outlier = usable & (values > threshold + _ROUNDING)
    broken = acting & ~usable
    drops = tuple(
        Drop(row, "non-finite" if broken[row] else "entropy", float(values[row]), float(threshold[row]))
        for row in (outlier | broken).nonzero().flatten().tolist()
    )
    stats = StatSums()
    stats.add_mean("sequence_entropy/mean", values, usable)
    stats.add_max("sequence_entropy/max", values, usable)
    if usable.any():
        stats.add_sum("sequence_entropy/std", values[usable].std(correction=0) * usable.sum(), usable.sum())
    return FilterResult("entropy", ~(outlier | broken), values, drops, stats)


def mismatch_filter(
    sampler_logp: Tensor,
    actor_logp: Tensor,
    actions: Tensor,
    tau: float | None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> FilterResult:
    """Drops sequences in which any action has ``|p_sampler - p_actor| > tau``.

    The difference is one of probabilities, not of their logarithms: 1e-9 against 1e-7 is harmless, 0.9
    against 0.1 is not. It is never averaged over actions.

    Args:
        sampler_logp: ``[B, T, C]`` log-probabilities that the rollout engine reported.
        actor_logp: ``[B, T, C]``, the trainer's at the weights that the samples were drawn with.
        actions: ``[B, T, C]`` bool.
        tau: ``None`` switches the filter off, but for log-probabilities that are not finite.
        thresholds: for ``mismatch/frac_over_<t>``, whatever ``tau`` is.
    """
    sampler, actor = sampler_logp.detach().double(), actor_logp.detach().double()
    finite = sampler.isfinite() & actor.isfinite()
    gap = (sampler.exp() - actor.exp()).abs().masked_fill(~finite, torch.inf)
    # Below 0 where there is no action, so that a sequence without any difference has an action as its worst, too.
    values, index = gap.masked_fill(~actions, -1.0).flatten(1).max(1)
    values = values.clamp_min(0.0)
    broken = values.isinf()
    limit = torch.inf if tau is None else tau
    dropped = broken | (values > limit)
    worst = _worst_actions(sampler, actor, actions, index)
    drops = tuple(
        Drop(row, "non-finite" if broken[row] else "mismatch", float(values[row]), limit, worst[row])
        for row in dropped.nonzero().flatten().tolist()
    )
    stats = _mismatch_stats(sampler, actor, gap, actions & finite)
    acting = actions.flatten(1).any(1)
    stats.add_mean("mismatch/frac_non_finite", broken.double(), acting)
    for threshold in thresholds:
        stats.add_mean(f"mismatch/frac_over_{threshold:g}", (values > threshold).double(), acting)
    for low, high in pairwise(DECADES):
        stats.add_mean(f"mismatch/hist/{low:g}", ((values > low) & (values <= high)).double(), acting)
    return FilterResult("mismatch", ~dropped, values, drops, stats, worst)


def _worst_actions(
    sampler: Tensor, actor: Tensor, actions: Tensor, index: Tensor
) -> tuple[WorstAction | None, ...]:
    p_sampler = sampler.exp().flatten(1).gather(1, index[:, None]).flatten().tolist()
    p_actor = actor.exp().flatten(1).gather(1, index[:, None]).flatten().tolist()
    acting = actions.flatten(1).any(1).tolist()
    cells = [divmod(cell, actions.shape[2]) for cell in index.tolist()]
    return tuple(
        WorstAction(position, channel, p_s, p_a) if acts else None
        for (position, channel), p_s, p_a, acts in zip(cells, p_sampler, p_actor, acting, strict=True)
    )


def _mismatch_stats(sampler: Tensor, actor: Tensor, gap: Tensor, counted: Tensor) -> StatSums:
    stats = StatSums()
    stats.add_max("mismatch/max_prob_diff", gap, counted)
    stats.add_mean("mismatch/mean_prob_diff", gap, counted)
    difference = (sampler - actor).abs()
    stats.add_mean("sampling/sampling_logp_difference/mean", difference, counted)
    stats.add_max("sampling/sampling_logp_difference/max", difference, counted)
    for channel in range(counted.shape[-1]):
        stats.add_mean(f"{channel_name(channel)}/logp_diff", difference[..., channel], counted[..., channel])
    return stats


@dataclass(frozen=True)
class CombinedFilter:
    """What all filters decided together.

    Attributes:
        keep: ``[B]`` bool, kept by every filter (the product of equation 11's indicators).
        drops: the records of all filters.
        stats: the filters' own, and ``filter/<name>/{dropped,reward_dropped,reward_kept}``, ``filter/kept``.
    """

    keep: Tensor
    drops: tuple[Drop, ...]
    stats: StatSums


def combine_filters(results: Sequence[FilterResult], rewards: Tensor) -> CombinedFilter:
    """Multiplies the masks, and logs shares of sequences and the mean reward of what each filter dropped and
    kept: a filter that drops what scores well biases the policy.

    Args:
        results: at least one.
        rewards: ``[B]``, NaN where there is none.
    """
    stats = StatSums()
    scored = rewards.isfinite()
    keep = torch.ones_like(results[0].keep)
    everything = torch.ones_like(keep)
    for result in results:
        stats.merge(result.stats)
        stats.add_mean(f"filter/{result.name}/dropped", (~result.keep).double(), everything)
        stats.add_mean(f"filter/{result.name}/reward_dropped", rewards, scored & ~result.keep)
        stats.add_mean(f"filter/{result.name}/reward_kept", rewards, scored & result.keep)
        keep = keep & result.keep
    stats.add_mean("filter/kept", keep.double(), everything)
    return CombinedFilter(keep, tuple(drop for result in results for drop in result.drops), stats)
