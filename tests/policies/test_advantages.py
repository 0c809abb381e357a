from __future__ import annotations

import math

import pytest
import torch

from dina.policies.advantages import group_advantages

NAN = math.nan


def advantages(rewards: list[float], groups: list[int], scale: str = "group", eps: float = 1e-4):
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), scale, eps)


def test_two_groups_by_hand():
    # Group 7: mean 1, deviations -1, 0, 1, sample deviation sqrt(2 / 2) = 1.
    # Group 3: mean 3, deviations -1, 1, sample deviation sqrt(2 / 1) = 1.41421356.
    result = advantages([0.0, 2.0, 1.0, 4.0, 2.0], [7, 3, 7, 3, 7], eps=0.0)
    assert result.values.tolist() == pytest.approx([-1, -0.70710678, 0, 0.70710678, 1])
    assert result.valid.all()
    # Mean 9 / 5; squared deviations 3.24 + 0.04 + 0.64 + 4.84 + 0.04 = 8.8, / 4 = 2.2.
    assert result.stats.compute() == pytest.approx(
        {"reward": 1.8, "reward_std": math.sqrt(2.2), "frac_reward_zero_std": 0.0}
    )


def test_scale_none_and_batch_by_hand():
    rewards, groups = [0.0, 2.0, 1.0, 4.0, 2.0], [7, 3, 7, 3, 7]
    assert advantages(rewards, groups, "none").values.tolist() == pytest.approx([-1, -1, 0, 1, 1])
    batch = advantages(rewards, groups, "batch", eps=0.5).values
    assert batch.tolist() == pytest.approx([x / (math.sqrt(2.2) + 0.5) for x in (-1, -1, 0, 1, 1)])


def test_a_missing_reward_enters_neither_baseline_nor_loss():
    with_missing = advantages([1.0, NAN, 3.0, math.inf], [0, 0, 0, 0])
    alone = advantages([1.0, 3.0], [0, 0])
    assert with_missing.valid.tolist() == [True, False, True, False]
    assert with_missing.values.tolist() == [alone.values[0], 0.0, alone.values[1], 0.0]
    assert with_missing.stats.compute() == alone.stats.compute()


def test_a_group_with_one_reward_has_no_baseline():
    result = advantages([5.0, NAN, 1.0, 2.0], [0, 0, 1, 1])
    assert result.valid.tolist() == [False, False, True, True]
    assert result.values[:2].tolist() == [0.0, 0.0]


def test_equal_rewards_give_exact_zeros_and_are_counted():
    result = advantages([0.1] * 3 + [0.0, 1.0, 0.5], [0] * 3 + [1] * 3)
    assert result.values[:3].tolist() == [0.0] * 3
    assert result.valid.all()
    assert result.stats.compute()["frac_reward_zero_std"] == 0.5


def test_no_reward_at_all():
    result = advantages([NAN, NAN], [0, 0])
    assert result.values.tolist() == [0.0, 0.0] and not result.valid.any()
    assert result.stats.compute() == {}


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_invariances(scale):
    rng = torch.Generator().manual_seed(1)
    rewards = torch.rand(12, generator=rng, dtype=torch.float64)
    groups = torch.arange(12) % 3
    result = group_advantages(rewards, groups, scale).values
    order = torch.randperm(12, generator=rng)
    permuted = group_advantages(rewards[order], groups[order], scale).values
    assert torch.allclose(permuted, result[order], atol=1e-14)
    for group in range(3):
        assert abs(float(result[groups == group].sum())) < 1e-12
    if scale != "batch":  # the deviation of the batch does see that one group moved
        shifted = group_advantages(rewards + torch.tensor([5.0, -2.0, 0.0])[groups], groups, scale).values
        assert torch.allclose(shifted, result, atol=1e-12)


def test_float32_in_float32_out():
    result = group_advantages(torch.tensor([1e6, 1e6 + 1]), torch.tensor([0, 0]), eps=0.0)
    assert result.values.dtype == torch.float32
    assert result.values.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="scale_rewards is 'groups'"):
        advantages([0.0, 1.0], [0, 0], "groups")
    with pytest.raises(ValueError, match=r"\[B\]"):
        group_advantages(torch.zeros(2), torch.zeros(3, dtype=torch.long))
