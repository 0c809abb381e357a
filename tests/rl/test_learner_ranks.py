"""One process and two ranks make the same updates, sharded or not, and go on alike from what they saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from dina.errors import DinaError
from dina.model.checkpoint import load_checkpoint
from dina.rl.learner.adapters import adapter_parameters
from dina.rl.learner.backbone import decoder_layers, recomputed
from dina.rl.learner.learner import Learner
from dina.rl.learner.ranks import free_port
from tests.rl.rank_world import SAMPLING, learn, new_learner, numbers, rank_main, recipe, samples, skip, train
from tests.tiny_checkpoint import tiny_checkpoint

pytestmark = pytest.mark.timeout(900)

LORA = {"r": 4, "lora_alpha": 8, "exclude_modules": ["o_proj"]}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"ranks": 2},
    "zero2": {"ranks": 2, "zero_stage": 2},
    "zero3": {"ranks": 2, "zero_stage": 3},
    "zero3_recomputed": {"ranks": 2, "zero_stage": 3, "gradient_checkpointing": True},
    "plain_lora": {"ranks": 2, "lora": LORA},
    "zero3_lora": {"ranks": 2, "zero_stage": 3, "lora": LORA, "gradient_checkpointing": True},
    "skip_plain": {"ranks": 2},
    "skip_zero3": {"ranks": 2, "zero_stage": 3},
    "zero2_bfloat16": {"ranks": 2, "zero_stage": 2, "dtype": "bfloat16"},
}
# Six AdamW steps on sums that were added up in another order; 1.2e-7 was seen.
FLOAT_ERROR = 2e-6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: of one process in this one, of two in two that are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    train(folder, "alone", recipe())
    train(folder, "alone_lora", recipe(lora=LORA))
    train(folder, "alone_bfloat16", recipe("bfloat16"))
    skip(folder, "skip_alone", recipe())
    torch.multiprocessing.spawn(rank_main, (2, free_port(), folder, KINDS), nprocs=2)
    return folder


def tensors(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.{rank}.safetensors")


def logged(folder: Path, name: str, rank: int = 0) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.{rank}.json").read_text())


def assert_same(folder: Path, name: str, other: str, tolerance: float) -> None:
    first, second = tensors(folder, name), tensors(folder, other)
    assert first.keys() == second.keys()
    far = {k: float((first[k] - second[k]).abs().max()) for k in first}
    assert max(far.values()) <= tolerance, max(far, key=lambda k: far[k])
    for one, two in zip(logged(folder, name), logged(folder, other), strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            same = value == two[key]
            if isinstance(value, float):
                same |= math.isclose(value, two[key], rel_tol=100 * tolerance, abs_tol=10 * tolerance)
            assert same, f"{key}: {value} and {two[key]}"


@pytest.mark.parametrize("name", ["plain", "zero2", "zero3", "zero3_recomputed"])
def test_two_ranks_update_as_one_process_does(runs: Path, name: str) -> None:
    assert_same(runs, "alone", name, FLOAT_ERROR)


@pytest.mark.parametrize("name", ["plain_lora", "zero3_lora"])
def test_two_ranks_train_adapters_as_one_process_does(runs: Path, name: str) -> None:
    assert_same(runs, "alone_lora", name, FLOAT_ERROR)


def test_bfloat16_under_zero_is_the_same_autocast(runs: Path) -> None:
    first, second = tensors(runs, "alone_bfloat16"), tensors(runs, "zero2_bfloat16")
    # A product of bfloat16 numbers is rounded to 2^-9 of it, at other places where micro-batches have other shapes.
    torch.testing.assert_close(first.pop("logp"), second.pop("logp"), rtol=0, atol=2e-2)
    torch.testing.assert_close(first, second, rtol=0, atol=2e-3)
    start = tiny_checkpoint().model.lm_head
    assert (
        start is not None
        and float((first["weight.lm_head.weight"] - start.weight.detach()).abs().max()) > 2e-2
    )


@pytest.mark.parametrize("name", ["alone", "alone_lora", *(k for k in KINDS if not k.startswith("skip"))])
def test_a_restored_learner_goes_on_bit_for_bit(runs: Path, name: str) -> None:
    assert_same(runs, name, f"{name}.resumed", 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_all_ranks_know_the_same(runs: Path, name: str) -> None:
    name = f"{name}.after" if name.startswith("skip") else name
    assert logged(runs, name) == logged(runs, name, rank=1)
    assert torch.equal(tensors(runs, name)["logp"], tensors(runs, name, rank=1)["logp"])
    assert tensors(runs, name, rank=1).keys() == {"logp"}


@pytest.mark.parametrize("name", ["skip_alone", "skip_plain", "skip_zero3"])
def test_a_minibatch_without_a_kept_sequence_is_no_step_on_any_rank(runs: Path, name: str) -> None:
    (line,) = logged(runs, f"{name}.skipped")
    assert (line["steps"], line["skipped"]) == (0, 2)
    start = {f"weight.{k}": p for k, p in tiny_checkpoint().model.named_parameters()}
    skipped, after = tensors(runs, f"{name}.skipped"), tensors(runs, f"{name}.after")
    assert all(torch.equal(skipped[k], p) for k, p in start.items())
    assert logged(runs, f"{name}.after")[0]["steps"] == 2
    assert any(not torch.equal(after[k], p) for k, p in start.items())
    assert_same(runs, "skip_alone.after", f"{name}.after", FLOAT_ERROR)


@pytest.mark.parametrize("name", ["alone", "zero3", "zero3_lora"])
def test_what_was_saved_is_a_checkpoint(runs: Path, name: str) -> None:
    saved = load_checkpoint(runs / f"{name}.saved")
    stream = samples()[1].stream
    with torch.no_grad():
        logp, _ = saved.model.log_probs_and_entropy(stream, SAMPLING)
    learner = Learner(saved, recipe(), SAMPLING)
    assert torch.equal(learner.log_probs(stream), logp)
    suffixes = {path.suffix for path in (runs / f"{name}.saved").rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja"}


def test_another_layout_is_refused_in_words(runs: Path) -> None:
    with pytest.raises(DinaError, match="'zero_stage': 2.*set these keys of learner as they were"):
        new_learner(recipe()).restore(runs / "zero2.saved")
    with pytest.raises(DinaError, match="holds no state of a learner"):
        new_learner(recipe()).restore(runs)


def test_merged_weights_are_those_of_merge_and_unload_and_training_goes_on() -> None:
    learner = new_learner(recipe(lora=LORA))
    frozen = {k: p.clone() for k, p in learner.model.named_parameters() if not p.requires_grad}
    assert {k for k, p in learner.model.named_parameters() if p.requires_grad} == set(
        adapter_parameters(learner.model)
    )
    drawn = samples()
    learn(learner, 1, drawn)
    merged = dict(learner.weights())
    learn(learner, 2, drawn)
    again = dict(learner.weights())
    assert any(not torch.equal(merged[k], again[k]) for k in merged)
    assert all(torch.equal(p, frozen[k]) for k, p in learner.model.named_parameters() if k in frozen)

    fields = recipe(lora=LORA).learner.lora
    assert fields is not None
    excluded = ["o_proj", "embed_tokens", "lm_head", "linear1", "linear2"]
    config = LoraConfig(**{**fields.model_dump(), "exclude_modules": excluded})
    reference = get_peft_model(tiny_checkpoint().model, config)
    adapters = {f"base_model.model.{k}": p for k, p in adapter_parameters(learner.model).items()}
    missing, unexpected = reference.load_state_dict(adapters, strict=False)
    assert not unexpected and not any("lora" in name for name in missing)
    whole = reference.merge_and_unload()
    assert dict(whole.named_parameters()).keys() == again.keys()

    mine = tiny_checkpoint().model
    mine.load_state_dict(again)
    stream = drawn[1].stream
    with torch.no_grad():
        logits = [m.log_probs_and_entropy(stream, SAMPLING)[0] for m in (mine, whole, learner.model)]
    assert torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", ["embed_tokens", "linear1", "lm_head"])
def test_an_adapter_that_would_do_nothing_is_refused(module: str) -> None:
    with pytest.raises(DinaError, match="would do nothing"):
        new_learner(recipe(lora={"target_modules": ["q_proj", module]}))
    with pytest.raises(DinaError, match="does not fit the model"):
        new_learner(recipe(lora={"target_modules": ["no_such_module"]}))


def test_recomputed_layers_give_the_same_gradients() -> None:
    model, stream = tiny_checkpoint().model, samples()[1].stream
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for layers in ([], decoder_layers(model)):
        model.zero_grad()
        with recomputed(layers):
            logp, entropy = model.log_probs_and_entropy(stream, SAMPLING)
        (logp.sum() + entropy.sum()).backward()
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 3  # once, then once and again backward
    assert not any(module.training for module in model.modules())
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][k], gradients[1][k]) for k in gradients[0])


def test_a_recipe_for_more_ranks_than_there_are_is_refused() -> None:
    with pytest.raises(DinaError, match="learner.ranks is 2, but this process is one of 1"):
        new_learner(recipe(ranks=2))


def test_the_result_tells_seconds() -> None:
    result = learn(new_learner(recipe()), 1, samples())
    assert result.seconds.keys() == {"compare", "update"} and min(result.seconds.values()) > 0
    assert numbers(result)["steps"] == 2
