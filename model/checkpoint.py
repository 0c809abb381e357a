"""The checkpoint folder: policy, processor and visual tokenizer, read and written as one thing.

Layout: ``config.json`` and ``model.safetensors`` (the policy), the processor's files, and
``visual_tokenizer/`` (encoder, codebooks and pixel decoder, frozen in reinforcement learning).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from dina.errors import DinaError
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.processor import DinaProcessor
from dina.model.visual_tokenizer import DinaVisualTokenizer

M = TypeVar("M", bound=PreTrainedModel)
VISUAL_TOKENIZER = "visual_tokenizer"


@dataclass
class Checkpoint:
    """What is needed to prompt the model and to see its pictures."""

    model: DinaForConditionalGeneration
    processor: DinaProcessor
    visual_tokenizer: DinaVisualTokenizer


def load_checkpoint(
    path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Reads a checkpoint folder; the visual tokenizer stays in float32, in which its codes are defined.

    Raises:
        DinaError: the folder or a part of it is missing, truncated or not a DiNA checkpoint.
    """
    folder = Path(path)
    _require(folder, "config.json", "a checkpoint")
    _require(folder / VISUAL_TOKENIZER, "config.json", "the visual tokenizer of a checkpoint")
    model = _load(DinaForConditionalGeneration, folder, dtype)
    processor = _load_processor(folder)
    if processor.codebook_sizes != model.config.codebook_sizes:
        raise DinaError(
            f"{folder}: the processor was made for codebooks {processor.codebook_sizes}, the model for "
            f"{model.config.codebook_sizes}; the folder mixes files of two checkpoints"
        )
    visual = load_visual_tokenizer(folder / VISUAL_TOKENIZER)
    return Checkpoint(model.to(device), processor, visual.to(device))


def load_visual_tokenizer(path: Path | str) -> DinaVisualTokenizer:
    """Reads the folder that ``dina tokenizer`` writes, frozen."""
    _require(Path(path), "config.json", "a visual tokenizer")
    return _load(DinaVisualTokenizer, Path(path), torch.float32).requires_grad_(False)


def save_checkpoint(
    checkpoint: Checkpoint,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes all parts (safetensors only), in ``dtype`` if given; codebooks are always float32.

    Args:
        state: the policy's weights by name, where the model itself holds shards of them or adapters beside them.
    """
    save_policy(checkpoint.model, folder, dtype, state)
    checkpoint.processor.save_pretrained(folder)
    checkpoint.visual_tokenizer.save_in(Path(folder) / VISUAL_TOKENIZER, dtype or torch.float32)


def save_policy(
    model: DinaForConditionalGeneration,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` alone; ``state`` as in ``save_checkpoint``."""
    state = model.state_dict() if state is None else state
    state = {k: v.to(dtype) if dtype else v for k, v in state.items()}
    if not torch.cuda.is_available():
        # Accelerate, which unwraps the model, imports DeepSpeed; that looks for a GPU and warns if there is none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(folder, state_dict=state)


def _load_processor(folder: Path) -> DinaProcessor:
    try:
        return DinaProcessor.from_pretrained(folder)
    # A cut-off file ends in whatever its parser raises: JSON errors, missing keys, the tokenizers' bare Exception.
    except Exception as error:
        raise DinaError(
            f"{folder}: the processor or its text tokenizer cannot be read ({error}); copy the checkpoint again"
        ) from error


def _require(folder: Path, name: str, what: str) -> None:
    if not folder.is_dir():
        raise DinaError(f"{folder} is not there; expected the folder of {what}")
    if not (folder / name).is_file():
        raise DinaError(f"{folder} has no {name}, so it is not {what}")


def _load(cls: type[M], folder: Path, dtype: torch.dtype) -> M:
    try:
        model, info = cls.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise DinaError(
            f"{folder}: the weights cannot be read ({error}); copy the checkpoint again"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise DinaError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model.eval()
