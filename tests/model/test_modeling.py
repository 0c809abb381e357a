from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from dina.model import modeling
from dina.model.config import DinaConfig
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from tests.model.tiny import CODEBOOKS, drawing_prompt, picture_prompt, text_prompt, tiny_config, tiny_model

BACKBONES = [("qwen2", False), ("qwen2", True), ("llama", False), ("llama", True), ("gpt2", True)]


def drawn_stream(model: DinaForConditionalGeneration, seed: int = 0) -> TokenStream:
    """Prompts of all kinds whose last positions count as actions."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(4):
        row = drawing_prompt(model.config, 3 + i, seed=i)
        patches = 5 + i
        codes = torch.stack([torch.randint(0, k, (patches,), generator=generator) for k in CODEBOOKS], 1)
        new = TokenStream.from_prompt([model.config.image_pad_token_id] * patches, codes)
        new.actions[..., 1:] = True
        rows.append(_join(row, new))
        answer = text_prompt(3 + i, seed=50 + i)
        answer.actions[..., 0] = True
        rows.append(_join(picture_prompt(model.config, (2, 2), 4, seed=i), answer))
    return TokenStream.collate(rows, pad_id=3)


def _join(a: TokenStream, b: TokenStream) -> TokenStream:
    fields = ("text_ids", "codes", "attention_mask", "actions")
    return TokenStream(*(torch.cat([getattr(a, f), getattr(b, f)], 1) for f in fields))


@pytest.mark.parametrize(("backbone", "tied"), BACKBONES)
def test_saved_and_loaded_models_are_equal(tmp_path: Path, backbone: str, tied: bool) -> None:
    model = tiny_model(backbone, tied)
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DinaConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, DinaForConditionalGeneration)
    stream = drawn_stream(model)
    with torch.no_grad():
        before = model.log_probs_and_entropy(stream, SamplingParams())
        after = loaded.log_probs_and_entropy(stream, SamplingParams())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_parameter_names_are_those_of_the_public_checkpoint() -> None:
    names = set(tiny_model().state_dict())
    buffer = "model.visual_tokenizer.visual_embedding_layer.pre_buffer"
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        f"{buffer}.pre_layernorm.bias",
        f"{buffer}.mlp.gate_proj.weight",
        "visual_head.hidden_norm.weight",
        "visual_head.hidden_proj.weight",
        "visual_head.headnorm.weight",
        "visual_head.heads.2.bias",
        "visual_head.transformer_layers.1.self_attention.k_proj.weight",
        "visual_head.transformer_layers.1.linear2.weight",
    } <= names
    assert not any(
        name.endswith(("linear1.bias", "linear2.bias", "k_proj.bias")) for name in names if "head" in name
    )


def test_a_checkpoint_with_the_unused_biases_loads(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        weights[f"visual_head.transformer_layers.{layer}.linear1.bias"] = torch.full((96,), 100.0)
        weights[f"visual_head.transformer_layers.{layer}.linear2.bias"] = torch.full((24,), 100.0)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    stream = drawn_stream(model)
    with torch.no_grad():
        expected, _ = model.log_probs_and_entropy(stream, SamplingParams())
        for unused in (False, True):
            config = DinaConfig.from_pretrained(tmp_path, image_head_unused_bias=unused)
            loaded, info = DinaForConditionalGeneration.from_pretrained(
                tmp_path, config=config, output_loading_info=True
            )
            assert not info["unexpected_keys"]
            assert torch.equal(loaded.eval().log_probs_and_entropy(stream, SamplingParams())[0], expected)


@pytest.mark.parametrize("budget", [8, 64])
def test_chunks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    model, stream = tiny_model(), None
    results = []
    for size in (2**26, budget):
        monkeypatch.setattr(modeling, "LIKELIHOOD_BUDGET", size)
        stream = drawn_stream(model)
        model.zero_grad()
        logp, entropy = model.log_probs_and_entropy(stream, SamplingParams(temperature=0.9))
        (logp.sum() + 0.1 * entropy.sum()).backward()
        results.append((logp.detach(), entropy.detach(), model.visual_head.hidden_proj.weight.grad.clone()))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-4, rtol=1e-4)


def test_padding_and_other_rows_do_not_reach_a_row() -> None:
    model = tiny_model()
    stream = drawn_stream(model)
    with torch.no_grad():
        together, _ = model.log_probs_and_entropy(stream, SamplingParams())
        for row in range(stream.batch_size):
            alone = stream.row(row)
            value, _ = model.log_probs_and_entropy(alone, SamplingParams())
            torch.testing.assert_close(value[0], together[row, : alone.length], atol=1e-5, rtol=1e-5)


def test_a_repetition_penalty_is_refused_in_training() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="repetition penalty"):
        model.log_probs_and_entropy(drawn_stream(model), SamplingParams(repetition_penalty=1.1))


def test_a_pretrained_backbone_keeps_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=36, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ).eval()
    source.save_pretrained(tmp_path)
    model = DinaForConditionalGeneration.from_backbone(str(tmp_path), tiny_config("llama")).eval()
    ids = torch.randint(0, 30, (2, 9))
    with torch.no_grad():
        expected = source(ids).logits[..., :30]
        hidden = model(ids).last_hidden_state
        torch.testing.assert_close(model.text_logits(hidden)[..., :30], expected, atol=1e-5, rtol=1e-5)
    assert model.model.embed_tokens.weight.shape[0] == 40 + sum(CODEBOOKS)


def test_codebooks_beyond_the_embedding_are_refused() -> None:
    with pytest.raises(ValueError, match="codebooks end at row"):
        tiny_config(codebook_sizes=[500, 7, 5])
