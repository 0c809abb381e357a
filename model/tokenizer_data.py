"""Pictures for the tokenizer: from a generator in code, or from a Hugging Face data set on disk."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dina.errors import DinaError


def load_pictures(source: str, count: int, seed: int, side: int, image_column: str = "image") -> list[Tensor]:
    """Up to ``count`` pictures as uint8 ``[3, H, W]``, cropped about their middle to multiples of ``side``.

    Args:
        source: ``module:attr`` of a function ``(count, seed) -> iterable of uint8 [H, W, 3]``, or the path of a
            Parquet file or folder, of a folder of pictures, or of a JSONL file whose lines name pictures.

    Raises:
        DinaError: the source cannot be found or read, or holds no picture large enough.
    """
    path = Path(source)
    if path.exists():
        found: Iterable[Any] = _from_disk(path, image_column)
    elif ":" in source:
        found = _attribute(source)(count=count, seed=seed)
    else:
        raise DinaError(f"picture source {source!r} is neither a path that exists nor module:attr")
    pictures = [_crop(_as_tensor(picture, source), side) for picture in islice(found, count)]
    pictures = [picture for picture in pictures if picture.numel()]
    if not pictures:
        raise DinaError(f"picture source {source!r} holds no picture of at least {side}x{side} pixels")
    return pictures


def _attribute(source: str) -> Any:
    module, _, name = source.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DinaError(f"picture source {source!r} cannot be imported: {error}") from error


def _from_disk(path: Path, column: str) -> Iterator[Any]:
    if path.suffix in (".jsonl", ".json"):
        return _from_jsonl(path, column)
    from datasets import load_dataset

    try:
        if path.is_file() or any(path.rglob("*.parquet")):
            files = [str(path)] if path.is_file() else sorted(str(file) for file in path.rglob("*.parquet"))
            rows = load_dataset("parquet", data_files=files, split="train")
        else:
            rows = load_dataset("imagefolder", data_dir=str(path), split="train")
    except (OSError, ValueError) as error:
        raise DinaError(f"cannot read pictures from {path}: {error}") from error
    if column not in rows.column_names:
        raise DinaError(f"{path} has no column {column!r}; it has {', '.join(rows.column_names)}")
    return (row[column] for row in rows)


def _from_jsonl(path: Path, column: str) -> Iterator[Image.Image]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                file = path.parent / json.loads(line)[column]
                yield Image.open(file)
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise DinaError(f"{path}, line {number}: no picture in {column!r} ({error})") from error


def _as_tensor(picture: Any, source: str) -> Tensor:
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DinaError(
            f"picture source {source!r} gave {array.dtype} of shape {array.shape}; "
            "expected uint8 [height, width, 3]"
        )
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def _crop(picture: Tensor, side: int) -> Tensor:
    height, width = (size // side * side for size in picture.shape[1:])
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    return picture[:, top : top + height, left : left + width]
