"""A new DiNA checkpoint: a backbone, a visual tokenizer and a text tokenizer put together."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from dina.errors import DinaError
from dina.model.checkpoint import Checkpoint, load_visual_tokenizer
from dina.model.config import DinaConfig
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.processor import IMAGE_TOKENS, DinaProcessor
from dina.model.sft_data import load_rows
from dina.model.text_tokenizer import add_special_tokens, train_text_tokenizer


class NewTextTokenizer(BaseModel):
    """A text tokenizer to train."""

    model_config = ConfigDict(extra="forbid")

    corpus: str | list[str] = Field(
        description="What to learn merges from: 'module:function' that yields texts, text files, or data like "
        "data.train, whose prompts and answers are read"
    )
    vocab_size: int = Field(description="Text ids before those of pictures (text_vocab_size)")


class NewModel(BaseModel):
    """What a new DiNA model is made of."""

    model_config = ConfigDict(extra="forbid")

    backbone: dict[str, Any] | str = Field(
        description="Config of a fresh Hugging Face causal LM ({model_type: qwen2, hidden_size: 128, …}), or the "
        "folder or hub id of a pretrained one"
    )
    visual_tokenizer: Path = Field(description="Folder that `dina tokenizer` wrote")
    text_tokenizer: NewTextTokenizer | None = Field(
        default=None, description="A tokenizer to train; a pretrained backbone brings its own"
    )
    special_rows: int = Field(
        default=32,
        ge=len(IMAGE_TOKENS),
        description="Text-head rows kept for picture and future special tokens",
    )
    pre_buffer_size: int = Field(default=512, description="Inner width of the pre-buffer of code embeddings")
    depth_head: dict[str, Any] = Field(
        default_factory=dict,
        description="Shape of the depth head: layers, dims, ffn_scale, head_dim (DinaConfig's image_head_* fields)",
    )
    seed: int = Field(default=0, description="Seed of the random weights")


_DEPTH_HEAD_FIELDS = {
    "layers": "image_head_transformer_layers",
    "dims": "image_head_transformer_dims",
    "ffn_scale": "image_head_transformer_ffn_scale",
    "head_dim": "image_head_head_dim",
}


def new_checkpoint(new: NewModel) -> Checkpoint:
    """Builds the parts and the model; weights that no pretrained part brings are random by ``new.seed``.

    Raises:
        DinaError: a part is missing or does not fit the others.
    """
    visual = load_visual_tokenizer(new.visual_tokenizer)
    codebooks = list(visual.config.vq_config.codebook_sizes)
    tokenizer, text_rows = _text_tokenizer(new)
    config = _config(new, tokenizer, text_rows, codebooks)
    torch.manual_seed(new.seed)
    if isinstance(new.backbone, str):
        model = DinaForConditionalGeneration.from_backbone(new.backbone, config)
    else:
        model = DinaForConditionalGeneration(config)
    return Checkpoint(model.eval(), DinaProcessor(tokenizer, codebooks), visual)


def _text_tokenizer(new: NewModel) -> tuple[PreTrainedTokenizerFast, int]:
    """The tokenizer and the number of text rows before the picture tokens."""
    if new.text_tokenizer is not None:
        tokenizer = train_text_tokenizer(
            read_corpus(new.text_tokenizer.corpus), new.text_tokenizer.vocab_size
        )
        return tokenizer, len(tokenizer) - len(IMAGE_TOKENS)
    if not isinstance(new.backbone, str):
        raise DinaError("a fresh backbone needs model.new.text_tokenizer (corpus and vocab_size)")
    tokenizer = AutoTokenizer.from_pretrained(new.backbone)
    first_new = len(tokenizer)
    add_special_tokens(tokenizer)
    return tokenizer, first_new


def read_corpus(source: str | list[str]) -> Iterable[str]:
    """Texts of ``module:attribute`` (an iterable, or a function that returns one), of text files, line by line, or
    of the prompts and answers of training data (a folder, Parquet, JSONL).

    Raises:
        DinaError: no such module, attribute or file.
    """
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        module, _, attribute = source.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise DinaError(f"text_tokenizer.corpus {source!r}: {error}") from error
        return found() if callable(found) else found
    paths = [Path(path) for path in ([source] if isinstance(source, str) else source)]
    for path in paths:
        if not path.exists():
            raise DinaError(f"text_tokenizer.corpus: {path} is not there (nor 'module:function')")
    return chain.from_iterable(map(_texts, paths))


def _texts(path: Path) -> Iterable[str]:
    if path.is_file() and path.suffix not in (".jsonl", ".parquet"):
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = load_rows([path])
    return [text for name in ("prompt", "answer") for text in rows[name] if text]


def _config(
    new: NewModel, tokenizer: PreTrainedTokenizerFast, text_rows: int, codebooks: list[int]
) -> DinaConfig:
    fields: dict[str, Any] = {
        f"image_{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in IMAGE_TOKENS.items()
    }
    unknown = set(new.depth_head) - set(_DEPTH_HEAD_FIELDS)
    if unknown:
        raise DinaError(f"depth_head: unknown {sorted(unknown)}; it takes {', '.join(_DEPTH_HEAD_FIELDS)}")
    fields |= {_DEPTH_HEAD_FIELDS[name]: value for name, value in new.depth_head.items()}
    head_rows = text_rows + new.special_rows
    if isinstance(new.backbone, str):
        pretrained = AutoConfig.from_pretrained(new.backbone)
        head_rows = max(head_rows, pretrained.vocab_size)
        fields["tie_word_embeddings"] = bool(pretrained.tie_word_embeddings)
    else:
        fields["text_config"] = {**new.backbone, "vocab_size": head_rows + sum(codebooks)}
        fields["tie_word_embeddings"] = new.backbone.get("tie_word_embeddings", False)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return DinaConfig(
        text_vocab_size=text_rows,
        text_vocab_plus_multimodal_special_token_size=head_rows,
        visual_offset=head_rows,
        codebook_sizes=codebooks,
        visual_embedding_layer_intermediate_size=new.pre_buffer_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        **fields,
    )
