from __future__ import annotations

import math

import pytest
import torch

from dina.errors import DinaError
from dina.model.sampling import (
    SamplingParams,
    counter_gumbel,
    draw,
    entropy_of,
    guide,
    penalise_repeats,
    shape_logits,
)
from tests.golden import load_golden

CONVENTIONS = [("engine", "all", True), ("hf_masked", "kept", True), ("hf", "kept", False)]


@pytest.mark.parametrize(("name", "top_p_over", "masked"), CONVENTIONS)
def test_truncation_matches_the_reference(name: str, top_p_over: str, masked: bool) -> None:
    tensors, metadata = load_golden("sampling")
    guided = guide(tensors["in.logits_cond"], tensors["in.logits_uncond"], metadata["filters_use_scale"])
    for index, combo in enumerate(metadata["combos"]):
        logits = guided.clone()
        if masked:
            logits[:, metadata["codebook_size"]] = -math.inf
        logits = penalise_repeats(logits, tensors["in.past_codes"], combo["repetition_penalty"])
        probs = shape_logits(logits, combo["temperature"], combo["top_k"], combo["top_p"], top_p_over).exp()
        expected = tensors[f"out.{name}.{index}.probs"]
        assert (probs - expected).abs().max() < 1e-5
        if f"out.{name}.{index}.support" in tensors:
            assert torch.equal(probs > 0, tensors[f"out.{name}.{index}.support"])


def test_guidance_matches_the_reference() -> None:
    tensors, metadata = load_golden("sampling")
    for scale in metadata["guidance_scales"]:
        guided = guide(tensors["in.logits_cond"], tensors["in.logits_uncond"], scale)
        torch.testing.assert_close(guided, tensors[f"out.guided.s{scale}"], atol=1e-5, rtol=1e-5)


def test_each_level_may_have_values_of_its_own() -> None:
    sampling = SamplingParams(temperature=0.7, code_temperature=(2.0, 0.5), code_top_k=(0, 2))
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    assert torch.equal(sampling.shape_text(logits), shape_logits(logits, 0.7))
    assert torch.equal(sampling.shape_codes(logits, 0), shape_logits(logits, 2.0))
    assert torch.equal(sampling.shape_codes(logits, 1), shape_logits(logits, 0.5, top_k=2))
    sampling.check_levels(2)
    with pytest.raises(DinaError, match="code_temperature has 2 numbers; the model has 3 code levels"):
        sampling.check_levels(3)


def test_noise_depends_on_its_own_counter_alone() -> None:
    seeds, positions = torch.tensor([5, -9, 2**62]), torch.tensor([7, 0, 123456])
    together = counter_gumbel(seeds, positions, 2, 50)
    for row in range(3):
        alone = counter_gumbel(seeds[row : row + 1], positions[row : row + 1], 2, 50)
        assert torch.equal(alone[0], together[row])
    assert torch.equal(counter_gumbel(seeds, positions, 2, 20), together[:, :20])
    assert not torch.equal(counter_gumbel(seeds, positions, 1, 50), together)


def test_noise_gives_the_distribution() -> None:
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    count = 200_000
    noise = counter_gumbel(torch.arange(count), torch.full((count,), 11), 0, 4)
    drawn = draw(log_probs.expand(count, 4), noise).bincount(minlength=4) / count
    assert (drawn - log_probs.exp()).abs().max() < 5 * math.sqrt(0.25 / count)


def test_noise_of_neighbouring_counters_is_uncorrelated() -> None:
    noise = counter_gumbel(torch.arange(2000), torch.zeros(2000, dtype=torch.long), 0, 2)
    later = counter_gumbel(torch.arange(2000), torch.ones(2000, dtype=torch.long), 0, 2)
    pairs = [(noise[:, 0], noise[:, 1]), (noise[:, 0], later[:, 0]), (noise[1:, 0], noise[:-1, 0])]
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.1


def test_greedy_puts_all_mass_on_the_best_class() -> None:
    log_probs = shape_logits(torch.tensor([[1.0, 3.0, 2.0]]), temperature=0)
    assert log_probs.tolist() == [[-math.inf, 0.0, -math.inf]]
    assert entropy_of(log_probs).item() == 0


def test_a_missing_past_does_not_hide_class_zero() -> None:
    logits = torch.tensor([[2.0, 2.0]])
    assert penalise_repeats(logits, torch.tensor([[0, -1]]), 2.0).tolist() == [[1.0, 2.0]]
    assert penalise_repeats(logits, torch.tensor([[-1, -1]]), 2.0).tolist() == [[2.0, 2.0]]
