from __future__ import annotations

import math

import pytest
import torch

from dina.errors import DinaError
from dina.policies.losses import Denominators, LossConfig, policy_loss, resolve_channel_weights
from dina.policies.stats import StatSums
from tests.policies.batches import Batch, ragged

WEIGHTS = torch.tensor([0.8, 0.5, 0.3, 0.2], dtype=torch.float64)
CONFIGS = [
    LossConfig(loss_type="grpo", epsilon_high=0.28),
    LossConfig(loss_type="dapo", beta=0.04),
    LossConfig(loss_type="dr_grpo", max_length=9, entropy_coef=0.01),
    LossConfig(loss_type="grpo", importance_sampling_level="sequence", beta=0.04, entropy_coef=0.01),
]


def run(b: Batch, config: LossConfig, weights: torch.Tensor = WEIGHTS, **more):
    return policy_loss(
        b.logp,
        b.old_logp,
        b.advantages,
        b.actions,
        weights=weights,
        keep=b.keep,
        config=config,
        ref_logp=b.ref_logp,
        entropy=b.entropy,
        **more,
    )


def gradient(b: Batch, config: LossConfig, **more) -> tuple[float, torch.Tensor]:
    b.logp = b.logp.detach().requires_grad_()
    loss = run(b, config, **more).loss
    loss.backward()
    return loss.item(), b.logp.grad


def test_channel_weights():
    def resolve(level_weights, text_weight=1.0):
        return resolve_channel_weights(level_weights, text_weight, 4).tolist()

    assert resolve("uniform") == [1.0, 0.25, 0.25, 0.25, 0.25]
    # 1 + 1/2 + 1/4 + 1/8 = 15/8
    assert resolve(0.5, 0.5) == pytest.approx([0.5, 8 / 15, 4 / 15, 2 / 15, 1 / 15])
    assert resolve(1) == resolve("uniform")
    assert resolve([2, 0, 0, 1]) == [1.0, 2.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("level_weights", "text_weight", "message"),
    [
        ("even", 1.0, "level_weights is 'even'. Write uniform"),
        ([1.0, 1.0], 1.0, "has 2 numbers; the model has 4"),
        ([1.0, -1.0, 0.0, 0.0], 1.0, "must not be negative"),
        ([1.0, math.nan, 0.0, 0.0], 1.0, "must not be negative"),
        (0.0, 1.0, "decay factor must be above 0"),
        ([0.0] * 4, 0.0, "nothing would be learned"),
    ],
)
def test_wrong_channel_weights_are_explained(level_weights, text_weight, message):
    with pytest.raises(DinaError, match=message):
        resolve_channel_weights(level_weights, text_weight, 4)


def by_hand() -> Batch:
    """Ratios of sequence 0: text 1.1; level 0: 1.5 and 0.7. Of sequence 1: level 0: 0.7. Sequence 2 is dropped."""
    ratio = torch.ones(3, 3, 2, dtype=torch.float64)
    actions = torch.zeros(3, 3, 2, dtype=torch.bool)
    for i, t, c, value in [(0, 0, 0, 1.1), (0, 1, 1, 1.5), (0, 2, 1, 0.7), (1, 1, 1, 0.7), (2, 0, 0, 9.0)]:
        ratio[i, t, c], actions[i, t, c] = value, True
    return Batch(
        logp=ratio.log() - 1,
        old_logp=torch.full_like(ratio, -1.0),
        ref_logp=ratio.log() - 1 + math.log(2),
        entropy=ratio,
        actions=actions,
        advantages=torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64),
        keep=torch.tensor([True, True, False]),
    )


def test_losses_and_statistics_by_hand():
    # Surrogates at epsilon 0.2: sequence 0 (A = 2): text 1.1·2 = 2.2; level 0: clipped 1.2·2 = 2.4, and 0.7·2 = 1.4.
    # Sequence 1 (A = -1): level 0: min(-0.7, -0.8) = -0.8.
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)

    def loss(**config) -> float:
        return float(run(by_hand(), LossConfig(**config), weights).loss)

    assert loss() == pytest.approx(-((2.2 + 0.5 * (2.4 + 1.4) / 2) + 0.5 * -0.8) / 2)  # -1.375
    assert loss(loss_type="dapo") == pytest.approx(-(2.2 / 1 + 0.5 * (2.4 + 1.4 - 0.8) / 3))  # -2.7
    assert loss(loss_type="dr_grpo", max_length=10) == pytest.approx(-(2.2 + 0.5 * 3.0) / 20)  # -0.185
    # A higher upper clip lets 1.5·2 = 3 through. The k3 divergence at a probability ratio of 2 is 2 - ln 2 - 1.
    assert loss(epsilon_high=0.6) == pytest.approx(-1.375 - 0.5 * 0.6 / 2 / 2)
    k3 = 1 - math.log(2)
    assert loss(beta=0.1) == pytest.approx(-1.375 + 0.1 * k3 * (1 + 0.5 + 0.5) / 2)
    # Mean entropy: text 1.1, level 0 (1.5 + 0.7 + 0.7) / 3.
    assert loss(entropy_coef=0.1) == pytest.approx(-1.375 - 0.1 * (1.1 + 0.5 * 2.9 / 3))

    result = run(by_hand(), LossConfig(), weights)
    assert not result.empty
    assert result.stats.compute() == pytest.approx(
        {
            "policy_loss": -1.375,
            "clip_ratio/high_mean": 0.25,
            "clip_ratio/low_mean": 0.25,
            "clip_ratio/region_mean": 0.5,
            "text/clip_ratio": 0.0,
            "level_0/clip_ratio": 2 / 3,
            "ratio/mean": (1.1 + 1.5 + 0.7 + 0.7) / 4,
            "ratio/max": 1.5,
            "kl": k3,
            "text/kl": k3,
            "level_0/kl": k3,
            "entropy": 1.0,
            "text/entropy": 1.1,
            "level_0/entropy": 2.9 / 3,
        }
    )


def test_sequence_level_ratio_by_hand():
    # GSPO: the weighted mean of log 1.1 (weight 1), log 1.5 and log 0.7 (weight 1/2 each), over weights 2.
    b = by_hand()
    ratio = (1.1 * 1.5**0.5 * 0.7**0.5) ** 0.5
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    expected = -((1.0 + 0.5) * ratio * 2 + 0.5 * -0.8) / 2
    assert float(run(b, LossConfig(importance_sampling_level="sequence"), weights).loss) == pytest.approx(
        expected
    )


def test_on_policy_sequence_gradient_equals_the_token_gradient_of_a_picture():
    b = ragged(3).select(slice(0, 1))
    b.old_logp, b.actions = b.logp.clone(), torch.ones_like(b.actions)
    _, token = gradient(b, LossConfig())
    _, sequence = gradient(b, LossConfig(importance_sampling_level="sequence"))
    assert torch.allclose(token, sequence, atol=1e-15) and token.abs().max() > 0


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_micro_batches_add_up_to_the_minibatch(config):
    for seed in range(4):
        whole = ragged(seed)
        is_weights = torch.rand(whole.logp.shape, dtype=torch.float64)
        denominators = Denominators.of(whole.actions, whole.keep)
        loss, grad = gradient(whole, config, is_weights=is_weights)
        stats, total, grads = StatSums(), 0.0, []
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
            part = whole.select(rows)
            more = {"denominators": denominators, "is_weights": is_weights[rows]}
            part_loss, part_grad = gradient(part, config, **more)
            total += part_loss
            grads.append(part_grad)
            stats.merge(run(part, config, **more).stats)
        assert total == pytest.approx(loss, abs=1e-13)
        assert (torch.cat(grads) - grad).abs().max() < 1e-12
        expected = run(whole, config, is_weights=is_weights).stats.compute()
        assert stats.compute() == pytest.approx(expected, abs=1e-12)


def test_denominators_add_up_over_parts():
    b = ragged(5)
    whole = Denominators.of(b.actions, b.keep)
    parts = Denominators.of(b.actions[:2], b.keep[:2]) + Denominators.of(b.actions[2:], b.keep[2:])
    assert parts.sequences == whole.sequences and torch.equal(parts.actions, whole.actions)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_invariant_to_order_padding_and_dropped_sequences(config):
    b = ragged(2)
    loss, grad = gradient(b, config)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    permuted_loss, permuted_grad = gradient(b.select(order), config)
    assert permuted_loss == pytest.approx(loss, abs=1e-13)
    assert torch.allclose(permuted_grad, grad[order], atol=1e-13)

    padded_loss, padded_grad = gradient(b.padded(4, math.nan), config)
    assert padded_loss == pytest.approx(loss, abs=1e-13)
    assert torch.allclose(padded_grad[:, :7], grad, atol=1e-13) and padded_grad[:, 7:].eq(0).all()

    kept_loss, kept_grad = gradient(b.select(b.keep), config)
    assert kept_loss == pytest.approx(loss, abs=1e-13)
    assert torch.allclose(kept_grad, grad[b.keep], atol=1e-13) and grad[~b.keep].eq(0).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradcheck(config):
    # At a drift of 0.02 every ratio is inside the clip range, so the loss is smooth.
    b = ragged(4, sequences=3, positions=3, drift=0.02)

    def loss(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        b.logp, b.entropy = logp, entropy
        return run(b, config).loss

    inputs = (b.logp.clone().requires_grad_(), b.entropy.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_no_gradient_through_clipped_ratios():
    b = by_hand()
    _, grad = gradient(b, LossConfig(), weights=torch.tensor([1.0, 0.5], dtype=torch.float64))
    # Text: -1.1·2 / 2. Level 0 of sequence 0: 1.5 is clipped; 0.7 with A > 0 is not: -0.5·0.7·2 / 2 / 2.
    expected = torch.zeros(3, 3, 2, dtype=torch.float64)
    expected[0, 0, 0], expected[0, 2, 1] = -1.1, -0.175
    assert torch.allclose(grad, expected)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_all_dropped_is_zero_without_nan_and_flagged(config):
    b = ragged(0)
    b.keep = torch.zeros(6, dtype=torch.bool)
    b.advantages = torch.full_like(b.advantages, math.nan)
    loss, grad = gradient(b, config)
    assert loss == 0.0 and grad.eq(0).all()
    result = run(b, config)
    assert result.empty and result.stats.compute() == {}


def test_an_empty_micro_batch_of_a_minibatch_that_is_not_empty():
    b = ragged(0)
    denominators = Denominators.of(b.actions, b.keep)
    b.keep = torch.zeros(6, dtype=torch.bool)
    result = run(b, CONFIGS[0], denominators=denominators)
    assert float(result.loss) == 0.0 and not result.empty


def test_huge_ratios_and_nan_in_what_is_not_kept_stay_finite():
    b = ragged(1)
    b.old_logp[0] = -500.0
    b.logp[~b.keep] = math.nan
    b.logp[1, ~b.actions[1]] = math.nan
    loss, grad = gradient(b, CONFIGS[3])
    assert math.isfinite(loss) and grad.isfinite().all()


def test_importance_weights_multiply_the_surrogate_but_not_the_penalty():
    b = ragged(6)
    zero = run(b, LossConfig(beta=0.1), is_weights=torch.zeros_like(b.logp)).loss
    plain = run(b, LossConfig()).loss
    assert float(run(b, LossConfig(beta=0.1)).loss - zero) == pytest.approx(float(plain), abs=1e-13)
    assert float(run(b, LossConfig(), is_weights=2 * torch.ones_like(b.logp)).loss) == pytest.approx(
        2 * float(plain)
    )


def test_missing_inputs_are_named():
    b = ragged(0)
    b.ref_logp = None
    with pytest.raises(ValueError, match="beta > 0 needs ref_logp"):
        run(b, LossConfig(beta=0.1))
    b.entropy = None
    with pytest.raises(ValueError, match="entropy_coef needs entropy"):
        run(b, LossConfig(entropy_coef=0.1))
    with pytest.raises(ValueError, match="set max_length"):
        LossConfig(loss_type="dr_grpo")
    with pytest.raises(ValueError, match="loss_type is 'ppo'"):
        LossConfig(loss_type="ppo")
