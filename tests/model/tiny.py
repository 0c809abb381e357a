"""A DiNA model of a few thousand weights, for tests."""

from __future__ import annotations

from typing import Any

import torch

from dina.model.config import DinaConfig
from dina.model.layout import ImageLayout
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.stream import TokenStream

CODEBOOKS = [11, 7, 5]


def tiny_config(backbone: str = "qwen2", tied: bool = False, **changes: Any) -> DinaConfig:
    fields: dict[str, Any] = {
        "text_config": {
            "model_type": backbone,
            "vocab_size": 40 + sum(CODEBOOKS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        },
        "text_vocab_size": 32,
        "text_vocab_plus_multimodal_special_token_size": 40,
        "visual_offset": 40,
        "codebook_sizes": CODEBOOKS,
        "visual_embedding_layer_intermediate_size": 24,
        "image_head_transformer_layers": 2,
        "image_head_transformer_dims": 24,
        "image_head_transformer_ffn_scale": 4,
        "image_head_head_dim": 8,
        "tie_word_embeddings": tied,
    }
    specials = [
        "image_start",
        "image_end",
        "image_pad",
        "image_newline",
        "image_size_start",
        "image_size_end",
    ]
    fields |= {f"{name}_token_id": 32 + i for i, name in enumerate(specials)}
    return DinaConfig(**{**fields, **changes})


def tiny_model(backbone: str = "qwen2", tied: bool = False, seed: int = 0) -> DinaForConditionalGeneration:
    torch.manual_seed(seed)
    model = DinaForConditionalGeneration(tiny_config(backbone, tied)).eval()
    with torch.no_grad():  # larger weights, so that distributions are far from uniform
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(6)
    return model


def text_prompt(length: int, seed: int = 0) -> TokenStream:
    ids = torch.randint(4, 32, (length,), generator=torch.Generator().manual_seed(seed))
    return TokenStream.from_prompt(ids.tolist(), torch.full((length, len(CODEBOOKS)), -1))


def drawing_prompt(config: DinaConfig, length: int, seed: int = 0) -> TokenStream:
    """Text, then a size tag and image start."""
    layout = ImageLayout.of(config)
    ids = text_prompt(length, seed).text_ids[0].tolist()
    ids += [layout.size_start, 5, 6, layout.size_end, layout.start]
    return TokenStream.from_prompt(ids, torch.full((len(ids), len(CODEBOOKS)), -1))


def picture_prompt(config: DinaConfig, grid: tuple[int, int], length: int, seed: int = 0) -> TokenStream:
    """A picture to read, then text."""
    layout = ImageLayout.of(config)
    generator = torch.Generator().manual_seed(seed)
    picture = layout.input_ids(*grid)
    text = text_prompt(length, seed).text_ids[0].tolist()
    codes = torch.full((len(picture) + length, len(CODEBOOKS)), -1)
    drawn = [torch.randint(0, k, (grid[0] * grid[1],), generator=generator) for k in CODEBOOKS]
    codes[1 : len(picture) - 1] = torch.stack(drawn, 1)
    return TokenStream.from_prompt(picture + text, codes)
