"""What a model's ``config.json`` says of its size: parameters, activations, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dina.model.checkpoint import VISUAL_TOKENIZER
from dina.model.config import DinaConfig
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.vision_config import DinaVisionConfig
from dina.model.visual_tokenizer import DinaVisualTokenizer
from dina.rl.learner.adapters import add_adapters
from dina.rl.learner.backbone import decoder_layers
from dina.rl.recipe.config import LoraSection
from dina.rollout.vllm_start import read_config


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters.

    Attributes:
        layers: of all decoder layers. count: how many there are. largest: of the largest one.
        outside: of everything else: tables, heads, pre-buffer.
        trained: of what the optimizer steps.
        vision: of the visual tokenizer; 0 if the folder has none.
        absent: of n-gram tables that the config describes and the model class does not have.
    """

    layers: int
    count: int
    largest: int
    outside: int
    trained: int
    vision: int = 0
    absent: int = 0

    @property
    def policy(self) -> int:
        return self.layers + self.outside


def model_sizes(folder: Path, lora: LoraSection | None = None) -> Sizes:
    """Counts a model that is built without memory.

    Raises:
        DinaError: the folder has no ``config.json``, or ``lora`` does not fit the model.
    """
    config = read_config(folder)
    with torch.device("meta"):
        model = DinaForConditionalGeneration(config)
        layers = [_count(layer) - _identity_experts(config) for layer in decoder_layers(model)]
        policy = sum(p.numel() for p in model.parameters()) - len(layers) * _identity_experts(config)
        if lora is not None:
            add_adapters(model, lora, seed=0)
    trained = policy if lora is None else sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Sizes(
        layers=sum(layers),
        count=len(layers),
        largest=max(layers, default=0),
        outside=policy - sum(layers),
        trained=trained,
        vision=_vision(folder / VISUAL_TOKENIZER),
        absent=_ngram_tables(config),
    )


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _vision(folder: Path) -> int:
    if not (folder / "config.json").is_file():
        return 0
    with torch.device("meta"):
        return _count(DinaVisualTokenizer(DinaVisionConfig.from_pretrained(folder)))


def _identity_experts(config: DinaConfig) -> int:
    """Weights per layer that transformers allocates for LongCat's identity experts, and no checkpoint holds."""
    text: Any = config.text_config
    if text.model_type != "longcat_flash":
        return 0
    return int(text.zero_expert_num * 2 * text.expert_ffn_hidden_size * text.hidden_size)


def _ngram_tables(config: DinaConfig) -> int:
    """Of LongCat-Next's n-gram embedding: a table and a projection for every order and split."""
    ratio = getattr(config, "ngram_vocab_size_ratio", 0)
    if not ratio:
        return 0
    text: Any = config.text_config
    tables = config.emb_split_num * (config.emb_neighbor_num - 1)
    width = text.hidden_size // tables
    rows = sum(ratio * config.text_vocab_size + 2 * index + 1 for index in range(tables))
    return int(rows * width + tables * width * text.hidden_size)


def activation_bytes(text: Any, width: int) -> float:
    """What one decoder layer keeps of one position for its backward pass, with a fused attention kernel.

    In ``width`` bytes: what the linear layers are given, queries, keys and values, and what the MLP multiplies. In
    float32: what the two RMSNorms compute with.
    """
    hidden, (query, keys, inner, attentions) = text.hidden_size, _widths(text)
    return float(attentions * (16 * hidden + width * (3 * hidden + query + keys)) + width * 4 * inner)


def kv_elements(text: Any, latent: bool) -> int:
    """Numbers per position in the cache of all layers.

    Args:
        latent: as vLLM does, keep of a latent attention (MLA) the latent alone.
    """
    _, keys, _, attentions = _widths(text)
    layers = attentions * (text.num_layers if hasattr(text, "num_layers") else text.num_hidden_layers)
    if latent and getattr(text, "kv_lora_rank", None):
        return int(layers * (text.kv_lora_rank + text.qk_rope_head_dim))
    return int(layers * keys)


def _widths(text: Any) -> tuple[int, int, int, int]:
    """Of one layer: width of the queries, of keys and values together, of all MLPs a token passes; attentions."""
    heads = text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):
        query = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
        keys = query + heads * text.v_head_dim
        if text.model_type == "longcat_flash":
            return query, keys, 2 * text.ffn_hidden_size + text.moe_topk * text.expert_ffn_hidden_size, 2
    else:
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        query, keys = heads * head, 2 * (getattr(text, "num_key_value_heads", None) or heads) * head
    inner = text.intermediate_size
    if experts := getattr(text, "num_experts_per_tok", None):
        inner = experts * getattr(text, "moe_intermediate_size", inner)
    return query, keys, inner, 1
