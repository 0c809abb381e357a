"""A whole checkpoint folder (policy, processor, visual tokenizer) of a few thousand weights, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from dina.model.checkpoint import Checkpoint, save_checkpoint
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.processor import DinaProcessor
from dina.model.text_tokenizer import train_text_tokenizer
from dina.model.vision_config import DinaVisionConfig
from dina.model.visual_tokenizer import DinaVisualTokenizer
from tests.model.tiny import CODEBOOKS, tiny_config

TEXT_ROWS = 288


def tiny_checkpoint(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    processor = DinaProcessor(train_text_tokenizer(["a red star", "how many?"], TEXT_ROWS - 16), CODEBOOKS)
    layout, first = processor.layout, len(processor.tokenizer)
    config = tiny_config(
        text_vocab_size=layout.start,
        text_vocab_plus_multimodal_special_token_size=first,
        visual_offset=first,
        image_start_token_id=layout.start,
        image_end_token_id=layout.end,
        image_pad_token_id=layout.pad,
        image_newline_token_id=layout.newline,
        image_size_start_token_id=layout.size_start,
        image_size_end_token_id=layout.size_end,
        text_config={
            "model_type": "qwen2",
            "vocab_size": first + sum(CODEBOOKS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        },
    )
    visual = DinaVisualTokenizer(
        DinaVisionConfig(
            hidden_size=16,
            depth=1,
            num_heads=2,
            intermediate_size=16,
            out_hidden_size=16,
            vq_config={"depth": len(CODEBOOKS), "codebook_sizes": CODEBOOKS, "codebook_dim": 8},
            visual_decoder_config={"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16},
        )
    )
    # A fresh codebook is all alike; spread it out, so that codes differ and pictures do too.
    for level in visual.visual_bridge_model.quantizer.quantize.codebooks:
        level.embed.data[:-1].normal_()
    return Checkpoint(DinaForConditionalGeneration(config).eval(), processor, visual.eval())


def save_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    save_checkpoint(tiny_checkpoint(seed), folder)
    return folder
