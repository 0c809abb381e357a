from __future__ import annotations

import math

import pytest
import torch

from dina.policies.corrections import importance_weights
from tests.policies.batches import ragged

PREFIX = "sampling/importance_sampling_ratio/"


def by_hand(mode: str, **bounds):
    """Ratios of sequence 0: 0.5 (text) and 4 (level 0), product 2. Of sequence 1: 0.1."""
    ratio = torch.tensor([[[0.5, 4.0]], [[0.1, 77.0]]], dtype=torch.float64)
    actions = torch.tensor([[[True, True]], [[True, False]]])
    result = importance_weights(torch.full_like(ratio, -5.0), ratio.log() - 5, actions, mode, **bounds)
    stats = {name.removeprefix(PREFIX): value for name, value in result.stats.compute().items()}
    return [[round(x, 6) for x in row] for row in result.values[:, 0].tolist()], stats


@pytest.mark.parametrize(
    ("mode", "weights", "outside"),
    [
        ("none", [[1, 1], [1, 0]], 2 / 3),
        ("token_truncate", [[0.5, 3], [0.2, 0]], 2 / 3),
        ("token_mask", [[0.5, 0], [0, 0]], 2 / 3),
        ("sequence_truncate", [[2, 2], [0.2, 0]], 1 / 2),
        ("sequence_mask", [[2, 2], [0, 0]], 1 / 2),
    ],
)
def test_weights_by_hand(mode, weights, outside):
    values, stats = by_hand(mode, clip_max=3.0, clip_min=0.2)
    assert values == weights
    assert stats["frac_outside"] == pytest.approx(outside)


def test_statistics_by_hand():
    _, stats = by_hand("token_truncate", clip_max=3.0, clip_min=0.2)
    # Weights 0.5, 3, 0.2: (3.7)² / (3 · (0.25 + 9 + 0.04)).
    assert stats == pytest.approx(
        {
            "min": 0.2,
            "mean": 3.7 / 3,
            "max": 3.0,
            "frac_outside": 2 / 3,
            "effective_sample_size": 13.69 / (3 * 9.29),
        }
    )
    _, plain = by_hand("none")
    assert (plain["min"], plain["max"], plain["mean"]) == pytest.approx((0.1, 4.0, 4.6 / 3))


def test_default_has_no_lower_bound():
    values, _ = by_hand("token_mask")
    assert values == [[0.5, 0], [0.1, 0]]


@pytest.mark.parametrize(
    "mode", ["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
def test_equal_policies_give_weight_one(mode):
    b = ragged(0)
    result = importance_weights(b.logp, b.logp, b.actions, mode)
    assert torch.equal(result.values, b.actions.float())
    stats = result.stats.compute()
    assert stats[PREFIX + "effective_sample_size"] == pytest.approx(1.0)
    assert stats[PREFIX + "frac_outside"] == 0.0


def test_sequence_weight_is_the_product_of_the_token_weights():
    b = ragged(1)
    unbounded = {"clip_max": None}
    token = importance_weights(b.old_logp, b.logp, b.actions, "token_truncate", **unbounded).values
    sequence = importance_weights(b.old_logp, b.logp, b.actions, "sequence_truncate", **unbounded).values
    for i in range(6):
        product = token[i][b.actions[i]].double().prod()
        assert torch.allclose(sequence[i][b.actions[i]].double(), product, rtol=1e-5)


def test_no_gradient_and_no_overflow():
    actor = torch.zeros(1, 3, 2, requires_grad=True)
    result = importance_weights(
        torch.full((1, 3, 2), -200.0), actor, torch.ones(1, 3, 2) > 0, "token_truncate", None
    )
    assert not result.values.requires_grad
    assert result.values.flatten().tolist() == pytest.approx([math.exp(20)] * 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_log_probabilities_that_are_not_finite_get_weight_zero(bad):
    sampler = torch.full((2, 2, 1), -1.0)
    sampler[0, 0, 0] = bad
    actor, actions = torch.full((2, 2, 1), -1.0), torch.ones(2, 2, 1, dtype=torch.bool)
    for mode, weights in (
        ("none", [0, 1, 1, 1]),
        ("token_truncate", [0, 1, 1, 1]),
        ("sequence_mask", [0, 0, 1, 1]),
    ):
        result = importance_weights(sampler, actor, actions, mode)
        assert result.values.flatten().tolist() == weights
        assert all(math.isfinite(value) for value in result.stats.compute().values())


def test_padding_changes_nothing():
    b = ragged(2)
    wide = b.padded(3, math.nan)
    for mode in ("token_mask", "sequence_truncate"):
        narrow = importance_weights(b.old_logp, b.logp, b.actions, mode, 1.2, 0.8)
        result = importance_weights(wide.old_logp, wide.logp, wide.actions, mode, 1.2, 0.8)
        assert torch.equal(result.values[:, :7], narrow.values) and result.values[:, 7:].eq(0).all()
        assert result.stats.compute() == pytest.approx(narrow.stats.compute())


def test_bad_arguments_are_named():
    zeros, actions = torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="mode is 'tis'"):
        importance_weights(zeros, zeros, actions, "tis")
    with pytest.raises(ValueError, match="clip_min 2.0 is above clip_max 1.0"):
        importance_weights(zeros, zeros, actions, "token_mask", 1.0, 2.0)
