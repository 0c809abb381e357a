"""Reads the rows of prompt files, each with the place to name in an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dina.errors import DinaError, advice

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields (place, row) of a JSONL file, a Parquet file, or a folder of pictures with ``metadata.jsonl``.

    The place is ``file:line``, or ``file, row n`` where there are no lines. The values of a JSONL file come
    as they are; in the other forms, a picture is a mapping with its encoded ``bytes`` or its ``path``.

    Raises:
        DinaError: no such file, another format, a line that is not a JSON object, or no row at all.
    """
    if not path.exists():
        near = (
            advice(path.name, (other.name for other in path.parent.glob("*"))) if path.parent.is_dir() else ""
        )
        raise DinaError(f"There is no prompt file {path}" + (f"; {near}" if near.startswith("did") else "."))
    if path.is_dir():
        rows = _read_picture_folder(path)
    elif path.suffix == ".jsonl":
        rows = _read_jsonl(path)
    elif path.suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        raise DinaError(f"{path}: prompts are .jsonl, .parquet, or a folder of pictures with metadata.jsonl")
    empty = True
    for place, row in rows:
        empty = False
        yield place, row
    if empty:
        raise DinaError(f"{path} holds no prompt; give it at least one line")


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DinaError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DinaError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise DinaError(f'{place}: a line is one JSON object such as {{"prompt": "a red star"}}')
        yield place, row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from datasets import Dataset

    try:
        table = _encoded(Dataset.from_parquet(str(path), keep_in_memory=True))
    except Exception as error:
        raise DinaError(f"{path} is not a readable Parquet file: {error}") from None
    for number, row in enumerate(table):
        yield f"{path}, row {number}", _without_none(row)


def _read_picture_folder(path: Path) -> Iterator[tuple[str, Row]]:
    from datasets import load_dataset

    if not any((path / f"metadata.{kind}").is_file() for kind in ("jsonl", "csv", "parquet")):
        raise DinaError(
            f"{path} has no metadata.jsonl; a picture folder needs one, with a file_name and a prompt per line"
        )
    try:
        table = _encoded(load_dataset("imagefolder", data_dir=str(path), split="train", keep_in_memory=True))
    except Exception as error:
        raise DinaError(f"{path} is not a readable picture folder: {error}") from None
    for number, row in enumerate(table):
        yield f"{path}, row {number}", _without_none(row)


def _encoded(table: Dataset) -> Dataset:
    """Leaves pictures as they lie in the file: whoever needs one decodes it."""
    from datasets import Image

    pictures = [name for name, kind in table.features.items() if isinstance(kind, Image)]
    for name in pictures:
        table = table.cast_column(name, Image(decode=False))
    return table


def _without_none(value: Any) -> Any:
    """Arrow gives every row all columns and every struct all fields; ``None`` stands for those it lacks."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
