from __future__ import annotations

import pytest
import torch

from dina.model.sampling import SamplingParams
from dina.rollout.faulty_engine import Faults, FaultyEngine, flip, round_to_int8
from dina.rollout.protocol import Prompt, Request, Sample
from dina.rollout.torch_engine import TorchEngine
from tests.tiny_checkpoint import tiny_checkpoint

REQUESTS = [Request(Prompt("p", "a red star", "t2i", (3, 4)), seed=i, index=i) for i in range(6)]


def draw(engine: TorchEngine) -> list[Sample]:
    return sorted(engine.generate(REQUESTS, SamplingParams()), key=lambda s: s.request.index)


def actor_gap(engine: TorchEngine, sample: Sample) -> torch.Tensor:
    """|p_sampler - p_actor| of a sample's actions, with the unrounded model as the actor."""
    logp, _ = engine.model.log_probs_and_entropy(sample.stream, SamplingParams())
    return (sample.logps.exp() - logp[0].exp()).abs()[sample.stream.actions[0]]


def test_without_faults_it_is_the_torch_engine() -> None:
    checkpoint = tiny_checkpoint()
    for ours, theirs in zip(
        draw(FaultyEngine(checkpoint, Faults())), draw(TorchEngine(checkpoint)), strict=True
    ):
        assert torch.equal(ours.stream.codes, theirs.stream.codes) and torch.equal(ours.logps, theirs.logps)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_weights_move_probabilities_a_little_and_leave_the_model_alone(precision: str) -> None:
    checkpoint = tiny_checkpoint()
    before = {k: v.clone() for k, v in checkpoint.model.state_dict().items()}
    samples = draw(FaultyEngine(checkpoint, Faults(precision=precision)))  # type: ignore[arg-type]
    gaps = torch.cat([actor_gap(TorchEngine(checkpoint), sample) for sample in samples])
    assert 1e-6 < gaps.max() < 0.1
    assert all(torch.equal(before[k], v) for k, v in checkpoint.model.state_dict().items())


def test_int8_has_255_levels_per_row() -> None:
    weight = torch.randn(3, 400) * torch.tensor([[1.0], [100.0], [0.0]])
    rounded = round_to_int8(weight)
    assert (rounded - weight).abs().max() <= weight.abs().max() / 254 + 1e-6
    assert all(len(row.unique()) <= 255 for row in rounded) and not rounded.isnan().any()


def test_stale_weights_are_those_of_k_updates_ago() -> None:
    checkpoint = tiny_checkpoint()
    engine = FaultyEngine(checkpoint, Faults(stale=2))
    name, weight = next((n, p) for n, p in checkpoint.model.named_parameters() if p.ndim == 2)
    versions, values = [], []
    for version in range(1, 5):
        with torch.no_grad():
            weight.fill_(float(version))
        engine.update_weights(checkpoint.model.named_parameters(), version)
        versions.append(engine.version)
        values.append(float(engine.model.state_dict()[name].mean()))
    assert versions == [0, 0, 1, 2] and values[2:] == [1.0, 2.0]
    assert {sample.weight_version for sample in draw(engine)} == {2}


def test_flips_plant_improbable_actions_with_a_false_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2000, 300, generator=generator)
    log_probs = logits.log_softmax(-1)
    seeds, positions = torch.arange(2000), torch.arange(2000) % 7
    out = flip(log_probs, seeds, positions, 1, rate=0.05, probability=0.9)
    changed = (out != log_probs).any(1)
    assert 0.03 < changed.float().mean() < 0.07
    assert torch.allclose(out.exp().sum(1), torch.ones(2000), atol=1e-5)
    best = out[changed].argmax(1)
    assert (out[changed].gather(1, best[:, None]).exp() > 0.89).all()
    assert (log_probs[changed].gather(1, best[:, None]).exp() < 1e-3).all()
    assert len(best.unique()) > 20
    alone = flip(log_probs[5:6], seeds[5:6], positions[5:6], 1, 0.05, 0.9)
    assert torch.equal(alone, out[5:6])
    assert flip(log_probs, seeds, positions, 1, 0.0, 0.9) is log_probs


def test_an_engine_with_flips_reports_what_the_actor_does_not_believe() -> None:
    checkpoint = tiny_checkpoint()
    samples = draw(FaultyEngine(checkpoint, Faults(flip_rate=0.1)))
    gaps = torch.cat([actor_gap(TorchEngine(checkpoint), sample) for sample in samples])
    assert 0.03 < (gaps > 0.5).float().mean() < 0.2
    honest = torch.cat([actor_gap(TorchEngine(checkpoint), s) for s in draw(TorchEngine(checkpoint))])
    assert honest.max() < 1e-4
