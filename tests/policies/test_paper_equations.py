"""Equations (9) to (11) as loops over numbers, against the tensors. Nothing of ``dina`` computes the left side."""

from __future__ import annotations

import math

import pytest
import torch

from dina.policies.filters import combine_filters, entropy_filter, mismatch_filter
from dina.policies.losses import LossConfig, policy_loss
from tests.policies.batches import Batch, ragged

WEIGHTS = torch.tensor([0.8, 0.5, 0.3, 0.2], dtype=torch.float64)
LOW, HIGH, LENGTH = 0.2, 0.28, 7


def clipped(ratio: float, advantage: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)


def sequence_ratio(batch: Batch, i: int) -> float:
    total = weight = 0.0
    for t, c in batch.actions[i].nonzero().tolist():
        total += float(WEIGHTS[c] * (batch.logp[i, t, c] - batch.old_logp[i, t, c]))
        weight += float(WEIGHTS[c])
    return math.exp(total / weight)


def terms(batch: Batch, i: int, c: int, level: str, beta: float) -> list[float]:
    """The surrogate (minus the KL penalty) of every action of channel c in sequence i."""
    found = []
    for t in range(batch.actions.shape[1]):
        if batch.actions[i, t, c]:
            ratio = math.exp(float(batch.logp[i, t, c]) - float(batch.old_logp[i, t, c]))
            if level == "sequence":
                ratio = sequence_ratio(batch, i)
            gap = float(batch.ref_logp[i, t, c]) - float(batch.logp[i, t, c])
            found.append(clipped(ratio, float(batch.advantages[i])) - beta * (math.exp(gap) - gap - 1))
    return found


def objective(batch: Batch, loss_type: str, level: str, beta: float, entropy_coef: float) -> float:
    kept = [i for i in range(len(batch.keep)) if batch.keep[i] and batch.actions[i].any()]
    value = 0.0
    for c in range(batch.actions.shape[2]):
        weight = float(WEIGHTS[c])
        by_sequence = [terms(batch, i, c, level, beta) for i in kept]
        count = sum(len(found) for found in by_sequence)
        if not count:
            continue
        if loss_type == "grpo":
            value += weight * sum(sum(f) / len(f) for f in by_sequence if f) / len(kept)
        elif loss_type == "dapo":
            value += weight * sum(sum(f) for f in by_sequence) / count
        else:
            value += weight * sum(sum(f) for f in by_sequence) / (LENGTH * len(kept))
        entropies = [float(batch.entropy[i, t, c]) for i in kept for t in range(7) if batch.actions[i, t, c]]
        value += entropy_coef * weight * sum(entropies) / count
    return value


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize(("beta", "entropy_coef"), [(0.0, 0.0), (0.04, 0.01)])
def test_objective(loss_type, level, beta, entropy_coef):
    config = LossConfig(LOW, HIGH, loss_type, level, LENGTH, beta, entropy_coef)
    for seed in range(8):
        b = ragged(seed)
        result = policy_loss(
            b.logp,
            b.old_logp,
            b.advantages,
            b.actions,
            weights=WEIGHTS,
            keep=b.keep,
            config=config,
            ref_logp=b.ref_logp,
            entropy=b.entropy,
        )
        assert float(result.loss) == pytest.approx(
            -objective(b, loss_type, level, beta, entropy_coef), abs=1e-13
        )


def naive_keep(entropy, sampler, actor, actions, k: float, tau: float) -> list[bool]:
    """The two indicators of equation (11)."""
    means = []
    for i in range(len(actions)):
        values = [float(entropy[i, t, c]) for t, c in actions[i].nonzero().tolist()]
        means.append(sum(values) / len(values))
    mean = sum(means) / len(means)
    std = math.sqrt(sum((value - mean) ** 2 for value in means) / len(means))
    keep = []
    for i, value in enumerate(means):
        gaps = [
            abs(math.exp(float(sampler[i, t, c])) - math.exp(float(actor[i, t, c])))
            for t, c in actions[i].nonzero().tolist()
        ]
        keep.append(value <= mean + k * std and max(gaps) <= tau)
    return keep


def test_filtered_objective():
    outcomes = set()
    for seed in range(12):
        b = ragged(seed, drift=0.5)
        expected = naive_keep(b.entropy, b.logp, b.old_logp, b.actions, k=1.2, tau=0.3)
        filters = (
            entropy_filter(b.entropy, b.actions, k=1.2),
            mismatch_filter(b.logp, b.old_logp, b.actions, tau=0.3),
        )
        keep = combine_filters(filters, b.advantages).keep
        assert keep.tolist() == expected
        outcomes.update((bool(f.keep.all()), keep.any().item()) for f in filters)
        b.keep = keep
        result = policy_loss(
            b.logp,
            b.old_logp,
            b.advantages,
            b.actions,
            weights=WEIGHTS,
            keep=keep,
            config=LossConfig(LOW, HIGH),
        )
        assert float(result.loss) == pytest.approx(-objective(b, "grpo", "token", 0.0, 0.0), abs=1e-13)
    assert {(True, True), (False, True)} <= outcomes, "the seeds must show filters that fire and that do not"
