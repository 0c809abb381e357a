from __future__ import annotations

import math

import pytest
import torch

from dina.policies.filters import WorstAction, combine_filters, entropy_filter, mismatch_filter
from dina.policies.losses import LossConfig, policy_loss
from tests.policies.batches import ragged

ALL = torch.ones(1, 1, 1, dtype=torch.bool)


def sequences(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One action each, with these entropies."""
    entropy = torch.tensor(values)[:, None, None]
    return entropy, torch.ones_like(entropy, dtype=torch.bool)


def planted(sequence_count: int = 16):
    """Entropies near 1 and probabilities that agree to 1e-4, but for the entropy of sequence 3, and one
    action of sequence 5 that the sampler gave 0.95 and the actor 0.05."""
    rng = torch.Generator().manual_seed(0)
    shape = (sequence_count, 6, 4)
    actions = torch.rand(shape, generator=rng) < 0.7
    actions[5, 4, 2] = True
    entropy = 1 + 0.05 * torch.rand(shape, generator=rng)
    entropy[3] += 1
    sampler = -2 * torch.rand(shape, generator=rng) - 0.1
    actor = (sampler.exp() + 1e-4 * torch.rand(shape, generator=rng)).log()
    sampler[5, 4, 2], actor[5, 4, 2] = math.log(0.95), math.log(0.05)
    return entropy, sampler, actor, actions


def test_both_filters_fire_on_the_planted_batch_and_on_nothing_else():
    entropy, sampler, actor, actions = planted()
    rewards = torch.arange(16.0)
    by_entropy = entropy_filter(entropy, actions, k=3.0)
    by_mismatch = mismatch_filter(sampler, actor, actions, tau=0.5)
    combined = combine_filters([by_entropy, by_mismatch], rewards)
    assert (~by_entropy.keep).nonzero().flatten().tolist() == [3]
    assert (~by_mismatch.keep).nonzero().flatten().tolist() == [5]
    assert (~combined.keep).nonzero().flatten().tolist() == [3, 5]

    entropy_drop, mismatch_drop = combined.drops
    assert entropy_drop.reason == "entropy" and entropy_drop.value > entropy_drop.threshold
    assert mismatch_drop.threshold == 0.5 and mismatch_drop.value == pytest.approx(0.9, abs=1e-6)
    assert (mismatch_drop.worst.position, mismatch_drop.worst.channel) == (4, 2)
    assert str(mismatch_drop) == (
        "sequence 5: mismatch 0.9 > 0.5 at position 4, level_1: p_sampler 0.95, p_actor 0.05"
    )
    stats = combined.stats.compute()
    assert stats["filter/kept"] == 14 / 16
    assert stats["filter/entropy/dropped"] == stats["filter/mismatch/dropped"] == 1 / 16
    assert (stats["filter/entropy/reward_dropped"], stats["filter/mismatch/reward_dropped"]) == (3.0, 5.0)
    assert stats["filter/entropy/reward_kept"] == pytest.approx((120 - 3) / 15)
    assert stats["mismatch/frac_over_0.5"] == stats["mismatch/frac_over_0.01"] == 1 / 16


def test_the_loss_does_not_see_what_was_dropped():
    entropy, sampler, actor, actions = planted()
    keep = mismatch_filter(sampler, actor, actions, tau=0.5).keep
    actor.requires_grad_()
    policy_loss(
        actor,
        sampler,
        torch.ones(16),
        actions,
        weights=torch.ones(4),
        keep=keep,
        config=LossConfig(),
    ).loss.backward()
    assert actor.grad[5].eq(0).all() and actor.grad[4].ne(0).any()


def test_entropy_threshold_by_hand():
    # Mean 10 / 5 = 2; squared deviations 1 + 1 + 1 + 1 + 16 = 20, / 5 = 4: deviation 2.
    entropy, actions = sequences(1.0, 1.0, 1.0, 1.0, 6.0)
    result = entropy_filter(entropy, actions, k=1.9)
    assert result.keep.tolist() == [True] * 4 + [False]
    assert result.drops[0].threshold == pytest.approx(2 + 1.9 * 2)
    assert result.stats.compute() == pytest.approx(
        {"sequence_entropy/mean": 2.0, "sequence_entropy/std": 2.0, "sequence_entropy/max": 6.0}
    )
    # 6 is exactly sqrt(5 - 1) = 2 deviations above the mean, the most that five values allow.
    assert entropy_filter(entropy, actions, k=2.0).keep.all()


def test_entropy_is_averaged_over_the_actions_of_each_sequence():
    entropy = torch.tensor([[[1.0, 9.0], [3.0, 9.0]], [[9.0, 4.0], [9.0, 9.0]]])
    actions = torch.tensor([[[True, False], [True, False]], [[False, True], [False, False]]])
    assert entropy_filter(entropy, actions, k=None).values.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("values", [(0.7,), (0.1,) * 7, (1 / 3,) * 10])
def test_a_single_sequence_or_equal_ones_are_kept(values):
    entropy, actions = sequences(*values)
    for k in (0.0, 0.5, 2.0):
        assert entropy_filter(entropy, actions, k).keep.all()


def test_low_entropy_is_no_outlier():
    entropy, actions = sequences(1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    assert entropy_filter(entropy, actions, k=1.0).keep.all()


def test_strata_compare_like_with_like():
    entropy, actions = sequences(*[4.0] * 2, *[1.0] * 14, 1.5)
    strata = torch.tensor([0] * 2 + [1] * 15)
    assert (~entropy_filter(entropy, actions, k=2.0).keep).nonzero().flatten().tolist() == [0, 1]
    by_task = entropy_filter(entropy, actions, k=2.0, strata=strata)
    assert (~by_task.keep).nonzero().flatten().tolist() == [16]


def test_filters_that_are_off_keep_all_and_report_the_same_statistics():
    entropy, sampler, actor, actions = planted()
    off, on = entropy_filter(entropy, actions, None), entropy_filter(entropy, actions, 3.0)
    assert off.keep.all() and not off.drops and off.stats.compute() == on.stats.compute()
    off, on = (mismatch_filter(sampler, actor, actions, tau) for tau in (None, 0.5))
    assert off.keep.all() and not off.drops and off.stats.compute() == on.stats.compute()


def test_mismatch_statistics_by_hand():
    # Sequence 0: 0.5 / 0.4 (text), 0.2 / 0.1 (level 0). Sequence 1: 0.8 / 0.82 (level 0). The rest is no action.
    p_sampler = torch.tensor([[[0.5, 0.2]], [[0.0, 0.8]]], dtype=torch.float64)
    p_actor = torch.tensor([[[0.4, 0.1]], [[0.9, 0.82]]], dtype=torch.float64)
    actions = torch.tensor([[[True, True]], [[False, True]]])
    result = mismatch_filter(p_sampler.log(), p_actor.log(), actions, tau=None, thresholds=(0.01, 0.05))
    assert result.values.tolist() == pytest.approx([0.1, 0.02])
    assert (result.worst[1].position, result.worst[1].channel) == (0, 1)
    text, level = math.log(1.25), (math.log(2), math.log(0.82 / 0.8))
    assert result.stats.compute() == pytest.approx(
        {
            "mismatch/max_prob_diff": 0.1,
            "mismatch/mean_prob_diff": 0.22 / 3,
            "mismatch/frac_over_0.01": 1.0,
            "mismatch/frac_over_0.05": 0.5,
            "mismatch/frac_non_finite": 0.0,
            **{f"mismatch/hist/{low:g}": 0.0 for low in (1e-6, 1e-5, 1e-4, 1e-3)},
            "mismatch/hist/0.01": 1.0,
            "mismatch/hist/0.1": 0.0,
            "sampling/sampling_logp_difference/mean": (text + sum(level)) / 3,
            "sampling/sampling_logp_difference/max": math.log(2),
            "text/logp_diff": text,
            "level_0/logp_diff": sum(level) / 2,
        }
    )


def test_the_worst_of_equal_actions_is_an_action():
    logp = torch.full((1, 4, 2), -1.0)
    actions = torch.zeros(1, 4, 2, dtype=torch.bool)
    actions[0, 2:, 1] = True
    (worst,) = mismatch_filter(logp, logp, actions, tau=0.1).worst
    assert (worst.position, worst.channel) == (2, 1)


def test_one_bad_action_among_a_thousand_is_enough():
    sampler = torch.full((2, 1000, 1), -1.0)
    actor = sampler.clone()
    sampler[1, 500], actor[1, 500] = math.log(0.9), math.log(1e-4)
    actions = torch.ones(2, 1000, 1, dtype=torch.bool)
    assert mismatch_filter(sampler, actor, actions, tau=0.5).keep.tolist() == [True, False]


def test_a_large_ratio_of_small_probabilities_is_no_mismatch():
    sampler, actor = torch.tensor([[[-20.0]]]), torch.tensor([[[-10.0]]])
    assert mismatch_filter(sampler, actor, ALL, tau=0.01).keep.all()


@pytest.mark.parametrize("tau", [None, 0.5])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_log_probabilities_that_are_not_finite_drop_their_sequence(bad, side, tau):
    pair = [torch.full((3, 4, 2), -1.0), torch.full((3, 4, 2), -1.0)]
    actions = torch.ones(3, 4, 2, dtype=torch.bool)
    actions[2] = False
    pair[side][1, 2, 1] = bad
    pair[side][2] = bad
    result = mismatch_filter(*pair, actions, tau)
    assert result.keep.tolist() == [True, False, True]
    drop = result.drops[0]
    assert drop.reason == "non-finite" and (drop.worst.position, drop.worst.channel) == (2, 1)
    assert str(drop).startswith("sequence 1: non-finite at position 2, level_0")
    assert isinstance(result.worst[0], WorstAction) and result.worst[2] is None
    stats = result.stats.compute()
    assert stats["mismatch/frac_non_finite"] == stats["mismatch/frac_over_0.5"] == 0.5
    assert all(math.isfinite(value) for value in stats.values())


def test_an_entropy_that_is_not_finite_drops_its_sequence_and_spoils_no_threshold():
    entropy, actions = sequences(1.0, math.nan, 1.0, 1.0, 1.0, 6.0)
    result = entropy_filter(entropy, actions, k=1.9)
    assert [(drop.sequence, drop.reason) for drop in result.drops] == [(1, "non-finite"), (5, "entropy")]
    assert result.drops[1].threshold == pytest.approx(2 + 1.9 * 2)
    assert not entropy_filter(entropy, actions, k=None).keep[1]


def test_sequences_without_actions_are_kept_and_not_counted():
    entropy, actions = sequences(1.0, 1.0, 1.0, 1.0, 6.0, 50.0)
    actions[5] = False
    result = entropy_filter(entropy, actions, k=1.9)
    assert result.keep.tolist() == [True] * 4 + [False, True]
    assert result.stats.compute()["sequence_entropy/max"] == 6.0


def test_all_dropped():
    entropy, actions = sequences(math.nan, math.nan)
    result = combine_filters([entropy_filter(entropy, actions, 1.0)], torch.tensor([1.0, math.nan]))
    assert not result.keep.any()
    assert result.stats.compute() == {
        "filter/entropy/dropped": 1.0,
        "filter/entropy/reward_dropped": 1.0,
        "filter/kept": 0.0,
    }


def test_filters_do_not_depend_on_order_or_padding():
    b = ragged(0, sequences=10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))

    def keeps(batch) -> list[torch.Tensor]:
        by_entropy = entropy_filter(batch.entropy, batch.actions, k=0.8)
        return [by_entropy.keep, mismatch_filter(batch.logp, batch.old_logp, batch.actions, tau=0.2).keep]

    expected = keeps(b)
    assert all(keep.any() and not keep.all() for keep in expected)
    for other, rows in ((b.select(order), order), (b.padded(3, math.nan), slice(None))):
        assert all(torch.equal(x, y[rows]) for x, y in zip(keeps(other), expected, strict=True))
