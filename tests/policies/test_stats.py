from __future__ import annotations

import math

import torch

from dina.policies.stats import StatSums, channel_name


def summary(values: torch.Tensor, mask: torch.Tensor) -> StatSums:
    stats = StatSums()
    stats.add_mean("mean", values, mask)
    stats.add_max("max", values, mask)
    stats.add_min("min", values, mask)
    return stats


def test_masked_values_do_not_count_even_as_nan():
    values = torch.tensor([1.0, math.nan, 3.0, math.inf])
    mask = torch.tensor([True, False, True, False])
    assert summary(values, mask).compute() == {"mean": 2.0, "max": 3.0, "min": 1.0}


def test_merged_parts_equal_the_whole():
    values = torch.randn(10, generator=torch.Generator().manual_seed(0))
    mask = values < 1
    parts = StatSums()
    for part in (slice(0, 1), slice(1, 7), slice(7, 10)):
        parts.merge(summary(values[part], mask[part]))
    whole, merged = summary(values, mask).compute(), parts.compute()
    assert merged.keys() == whole.keys()
    for name, value in whole.items():
        assert math.isclose(merged[name], value, rel_tol=1e-12)


def test_a_name_without_data_is_left_out():
    assert summary(torch.ones(3), torch.zeros(3, dtype=torch.bool)).compute() == {}
    assert summary(torch.ones(0), torch.ones(0, dtype=torch.bool)).compute() == {}


def test_no_gradient_is_kept():
    values = torch.ones(3, requires_grad=True)
    stats = summary(values, torch.ones(3, dtype=torch.bool))
    assert not stats.sums["mean"].requires_grad and not stats.maxima["max"].requires_grad


def test_channel_names():
    assert [channel_name(c) for c in range(3)] == ["text", "level_0", "level_1"]
