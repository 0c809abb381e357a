from __future__ import annotations

import math

import pytest
import torch

from dina.errors import DinaError
from dina.model.sampling import SamplingParams
from dina.rollout.probe import Tolerance, compare_probe
from dina.rollout.torch_engine import TorchEngine
from tests.rollout.world import by_torch, mixed_requests, world_checkpoint

ACTIONS = [torch.tensor([[True, False], [True, True]])]


def logps(shift: float) -> list[torch.Tensor]:
    return [torch.tensor([[-1.0 + shift, 99.0], [-2.0, -3.0]])]


def test_equal_log_probs_pass_and_are_reported() -> None:
    report = compare_probe(logps(0), logps(3e-4), ACTIONS, tolerance=Tolerance(2e-4, 1e-3))
    assert report.actions == 3
    assert report.metrics() == {
        "probe/mean_logp_diff": pytest.approx(1e-4, rel=1e-2),
        "probe/max_logp_diff": pytest.approx(3e-4, rel=1e-2),
    }


def test_what_is_no_action_is_not_compared() -> None:
    other = [torch.tensor([[-1.0, -5.0], [-2.0, -3.0]])]
    assert compare_probe(logps(0), other, ACTIONS).largest == 0


def test_tolerance_follows_the_precision() -> None:
    with pytest.raises(DinaError, match="differ by 0.033 on average and 0.1 at most"):
        compare_probe(logps(0), logps(0.1), ACTIONS, "float32")
    assert compare_probe(logps(0), logps(0.1), ACTIONS, "bfloat16").largest == pytest.approx(0.1)


def test_nan_and_nothing_fail() -> None:
    with pytest.raises(DinaError, match="engine's log-probabilities hold NaN"):
        compare_probe(logps(math.nan), logps(0), ACTIONS)
    with pytest.raises(DinaError, match="no action"):
        compare_probe(logps(0), logps(0), [torch.zeros(2, 2, dtype=torch.bool)])


def test_a_torch_engine_with_old_weights_fails_and_with_new_ones_passes() -> None:
    sampling = SamplingParams(max_new_tokens=5)
    learner, engine = world_checkpoint().model, TorchEngine(world_checkpoint())
    streams = [g.stream for g in by_torch(learner, mixed_requests(learner.config, 8), sampling)]
    actions = [stream.actions[0] for stream in streams]
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1.01)
        actor = [learner.log_probs_and_entropy(stream, sampling)[0][0] for stream in streams]
    with pytest.raises(DinaError, match="weight probe failed"):
        compare_probe(engine.probe(streams, sampling), actor, actions)
    engine.update_weights(learner.named_parameters(), 1)
    assert compare_probe(engine.probe(streams, sampling), actor, actions).largest < 1e-5
