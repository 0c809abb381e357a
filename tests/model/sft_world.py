"""A dataset of a dozen pictures, a random visual tokenizer and a recipe of seconds, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from dina.model.sft_config import SftRecipe
from dina.model.vision_config import DinaVisionConfig
from dina.model.visual_tokenizer import DinaVisualTokenizer

TEXTS = ["a red star", "a blue circle left of a red star", "how many stars are there?", "3", "yes"]


def corpus() -> list[str]:
    return TEXTS * 4


def save_visual_tokenizer(folder: Path) -> Path:
    """Three levels of codes 8, 8, 4 and 4 pixels a token."""
    torch.manual_seed(0)
    config = DinaVisionConfig(
        hidden_size=8,
        depth=1,
        num_heads=1,
        intermediate_size=8,
        patch_size=2,
        out_hidden_size=8,
        vq_config={"depth": 3, "codebook_sizes": [8, 8, 4], "codebook_dim": 8},
        visual_decoder_config={"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1},
    )
    DinaVisualTokenizer(config).save_pretrained(folder)
    return folder


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Two drawings, then a question, and so on; pictures of 2x2 and 2x3 tokens."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        side = (8, 12) if i % 4 == 0 else (8, 8)
        image = Pictures.fromarray(rng.integers(0, 255, (*side, 3), dtype=np.uint8))
        asked = i % 3 == 2
        out.append(
            {
                "task": "vqa" if asked else "t2i",
                "prompt": TEXTS[2] if asked else TEXTS[i % 2],
                "answer": "3" if asked else None,
                "image": image,
            }
        )
    return out


def save_rows(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    strings = {name: Value("string") for name in ("task", "prompt", "answer")}
    Dataset.from_list(rows(count), Features({**strings, "image": Image()})).to_parquet(
        folder / "rows.parquet"
    )
    return folder


def new_model(visual: Path, **changes: Any) -> dict[str, Any]:
    backbone = {
        "model_type": "qwen2",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return {
        "backbone": backbone,
        "visual_tokenizer": str(visual),
        "text_tokenizer": {"corpus": "tests.model.sft_world:corpus", "vocab_size": 270},
        "special_rows": 8,
        "pre_buffer_size": 16,
        "depth_head": {"layers": 1, "dims": 12, "ffn_scale": 2, "head_dim": 6},
        **changes,
    }


def recipe(folder: Path, **changes: Any) -> SftRecipe:
    """A recipe over data in ``folder`` (made on the first call)."""
    if not (folder / "rows").exists():
        save_visual_tokenizer(folder / "visual")
        save_rows(folder / "rows")
    fields: dict[str, Any] = {
        "model": {"new": new_model(folder / "visual")},
        "data": {"train": [str(folder / "rows")], "drop_prompt": 0.2},
        "stages": [{"name": "sft", "max_steps": 4, "warmup_steps": 1, "learning_rate": 1e-2}],
        "batch_size": 3,
        "logging_steps": 1,
        "save_steps": 2,
        "output_dir": str(folder / "run"),
    }
    return SftRecipe.model_validate({**fields, **changes})
