"""The memory arithmetic of ``--dry-run`` against real models and against LongCat-Next's known counts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from dina.errors import DinaError
from dina.model.checkpoint import VISUAL_TOKENIZER
from dina.rl.learner.adapters import add_adapters
from dina.rl.memory_plan import Item, MemoryPlan, memory_rows
from dina.rl.model_sizes import activation_bytes, kv_elements, model_sizes
from dina.rl.recipe.config import LoraSection, TrainConfig
from dina.rl.recipe.load import load_recipe
from dina.rollout.vllm_start import read_config
from tests.tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's configs without its weights."""
    whole, bare = (tmp_path_factory.mktemp(name) for name in ("whole", "bare"))
    save_tiny_checkpoint(whole)
    (bare / VISUAL_TOKENIZER).mkdir()
    for name in ("config.json", f"{VISUAL_TOKENIZER}/config.json"):
        shutil.copy(whole / name, bare / name)
    return bare


def plan(folder: Path, **changes: Any) -> MemoryPlan:
    fields = {
        "model": {"path": str(folder)},
        "data": {"train": "p"},
        "rewards": [{"use": "objects"}],
        "algorithm": {"prompts_per_step": 8},
        "rl": {"runner": "ray"},
        **changes,
    }
    return MemoryPlan(TrainConfig.model_validate(fields))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def held(items: list[Item]) -> dict[str, float]:
    return {item.name: item.bytes for item in items}


def test_counts_from_the_config_are_those_of_the_model(folder: Path) -> None:
    checkpoint, sizes = tiny_checkpoint(), model_sizes(folder)
    layers = checkpoint.model.model.layers
    assert sizes.policy == sizes.trained == count(checkpoint.model)
    assert (sizes.layers, sizes.count, sizes.largest) == (count(layers), len(layers), count(layers[0]))
    assert sizes.vision == count(checkpoint.visual_tokenizer)
    assert sizes.absent == 0


def test_adapters_are_what_is_trained(folder: Path) -> None:
    lora = LoraSection(r=4)
    model = tiny_checkpoint().model
    add_adapters(model, lora, 0)
    sizes = model_sizes(folder, lora)
    assert sizes.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.policy == count(tiny_checkpoint().model)


def test_longcat_next_has_the_known_size() -> None:
    sizes = model_sizes(Path(load_recipe("cluster/longcat_next", [], TrainConfig).model.path))
    depth_head, pre_buffer = 879_039_496, 75_503_616
    selection_bias = 14 * 384  # a buffer here, in the checkpoint a tensor
    trunk = sizes.policy - depth_head - pre_buffer + sizes.absent + selection_bias
    assert trunk == 69_028_195_584
    config = read_config(Path(load_recipe("cluster/longcat_next", [], TrainConfig).model.path))
    assert kv_elements(config.text_config, latent=True) == 28 * 576
    assert kv_elements(config.text_config, latent=False) == 28 * 32 * (192 + 128)


@pytest.mark.parametrize(("stage", "per_weight"), [(0, 16), (2, 4 + 16 / 4), (3, 20 / 4)])
def test_states_are_sharded_as_zero_shards_them(folder: Path, stage: int, per_weight: float) -> None:
    found = held(plan(folder, learner={"ranks": 4, "zero_stage": stage}).learner())
    states = [found.get(name, 0.0) for name in ("weights", "gradients", "Adam's moments", "DeepSpeed's copy")]
    assert sum(states) == per_weight * count(tiny_checkpoint().model)


def test_frozen_weights_have_neither_gradients_nor_moments(folder: Path) -> None:
    found = held(plan(folder, learner={"lora": {"r": 4}}).learner())
    trained = model_sizes(folder, LoraSection(r=4)).trained
    assert (found["gradients"], found["Adam's moments"]) == (4 * trained, 8 * trained)


def test_what_costs_memory_is_counted(folder: Path) -> None:
    weights = count(tiny_checkpoint().model)
    usual = held(plan(folder).learner())
    recomputed = held(plan(folder, learner={"gradient_checkpointing": True}).learner())
    assert recomputed["activations"] < usual["activations"]
    assert held(plan(folder, algorithm={"beta": 0.1}).learner())["reference policy"] == 4 * weights
    assert held(plan(folder, run={"dtype": "bfloat16"}).learner())["autocast's copies"] == 2 * weights
    in_bfloat16 = held(plan(folder, run={"dtype": "bfloat16"}, rollout={"engine": "vllm"}).rollout())
    assert in_bfloat16["weights"] == 2 * weights
    # 64 samples of 128 positions, 2 layers of 2 heads of 8, keys and values
    assert in_bfloat16["keys and values"] == 2 * 64 * 128 * 2 * 2 * 2 * 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_of_a_layer_are_about_what_torch_keeps(dtype: str) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    positions, kept = 2 * 512, []
    for layers in (1, 2):
        config = AutoConfig.for_model("qwen2", num_hidden_layers=layers, vocab_size=64, **shape)
        kept.append(kept_bytes(AutoModel.from_config(config).eval(), positions, dtype))
    estimate = activation_bytes(config, {"float32": 4, "bfloat16": 2}[dtype])
    assert estimate == pytest.approx((kept[1] - kept[0]) / positions, rel=0.15)


def kept_bytes(model: torch.nn.Module, positions: int, dtype: str) -> int:
    """Bytes that a forward pass keeps for the backward one, without weights and autocast's copies of them."""
    weights = {
        tuple(shape) for p in model.parameters() for shape in (p.shape, p.T.shape if p.ndim == 2 else p.shape)
    }
    found = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in weights:
            found[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    inputs = torch.randn(2, positions // 2, model.config.hidden_size, requires_grad=True)  # type: ignore[union-attr]
    enabled = dtype == "bfloat16"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    ):
        output = model(inputs_embeds=inputs, use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(size for size, _ in found.values())


def test_the_rows_add_up_to_devices(folder: Path) -> None:
    rows = dict(plan(folder, learner={"ranks": 2, "zero_stage": 3}).rows())
    assert rows["memory per device, colocated"].startswith("1 × (")
    assert "raise ray.object_store_mb" not in rows["object store for weight sync"]
    separate = dict(plan(folder, ray={"placement": "separate", "rollout": {"workers": 3}}).rows())
    assert separate["devices, separate"].count(" × ") == 2
    local = dict(plan(folder, rl={"runner": "local"}).rows())
    assert "memory of the process" in local and "drawing: weights" not in local


def test_the_sequence_is_bounded_by_prompt_and_picture(folder: Path) -> None:
    assert plan(folder).longest == 128
    bounded = plan(folder, data={"train": "p", "max_prompt_length": 10, "grid": [4, 5]})
    assert bounded.longest == 10 + 64  # an answer may be longer than the picture
    short = plan(
        folder,
        data={"train": "p", "max_prompt_length": 10, "grid": [4, 5]},
        rollout={"max_completion_length": 8},
    )
    assert short.longest == 10 + 4 * 6 + 2


def test_a_folder_without_config_is_said_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    config = plan_config(tmp_path)
    assert memory_rows(config) == [("memory", f"not computed: {tmp_path} has no config.json")]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DinaError, match=r"config.json cannot be read"):
        memory_rows(config)


def plan_config(folder: Path) -> TrainConfig:
    fields = {"model": {"path": str(folder)}, "data": {"train": "p"}, "rewards": [{"use": "objects"}]}
    return TrainConfig.model_validate(fields)
