"""The rows that ``dina prepare`` keeps, written in the form that ``dina train`` and ``dina evaluate`` read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets import Image as Picture
from PIL import Image

from dina.errors import DinaError
from dina.eval.pictures import png_bytes
from dina.rl.data import picture_file
from dina.rl.prompt_files import Row
from dina.rollout.protocol import Prompt

_ROW_GROUP = 256


@dataclass(frozen=True)
class PreparedRow:
    """A row that stays.

    Attributes:
        values: all its columns, as the source has them after renaming.
        path: the source's file or folder.
        provenance: ``source``, ``row`` (from 1), ``image_hash``.
    """

    prompt: Prompt
    values: Row
    path: Path
    pass_rate: float
    provenance: dict[str, Any]

    def columns(self, name: str) -> Row:
        """What is written of it, but for the picture. ``name`` is the row's id.

        A row that has been prepared before keeps the provenance that it was given first.
        """
        prompt = self.prompt
        own = {"id": name, "task": prompt.task, "prompt": prompt.text, "pass_rate": self.pass_rate}
        other = {k: v for k, v in self.values.items() if k not in {*own, "question", "image"}}
        return {**own, "provenance": self.provenance, **other}

    def picture(self) -> bytes | None:
        """The picture in its own encoding, or as PNG where it was drawn; ``None`` for a row without one."""
        if self.prompt.image is None:
            return None
        file = picture_file(self.values.get("image"), self.path)
        if file is None:
            return png_bytes(self.prompt.image)
        return file.read_bytes() if isinstance(file, Path) else file.getvalue()


def write_jsonl(folder: Path, rows: Iterable[PreparedRow]) -> Path:
    """Writes ``prepared.jsonl``, with the pictures in ``pictures/``."""
    (folder / "pictures").mkdir(exist_ok=True)
    path = folder / "prepared.jsonl"
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        for number, (name, row) in enumerate(_named(rows)):
            columns = row.columns(name)
            if (picture := row.picture()) is not None:
                kind = (Image.open(io.BytesIO(picture)).format or "img").lower()
                columns["image"] = f"pictures/{number:06d}.{kind}"
                (folder / columns["image"]).write_bytes(picture)
            file.write(json.dumps(columns, ensure_ascii=False) + "\n")
    os.replace(aside, path)
    return path


def write_parquet(folder: Path, rows: Iterable[PreparedRow]) -> Path:
    """Writes ``prepared.parquet``, pictures included, a few rows at a time.

    Args:
        rows: iterated twice.

    Raises:
        DinaError: a column has values of different types, which Parquet cannot hold.
    """
    path = folder / "prepared.parquet"
    aside = path.with_name(path.name + ".tmp")
    listed = [_flat(row.columns(name)) for name, row in _named(rows)]
    names = dict.fromkeys(name for row in listed for name in row)
    try:
        table = Dataset.from_dict({name: [row.get(name) for row in listed] for name in names})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DinaError(
            f"{path}: the sources hold a column with values of different types ({error}); set format=jsonl"
        ) from error
    features = Features({**table.features, "image": Picture()})
    with pq.ParquetWriter(aside, features.arrow_schema) as writer:
        pictures = (row.picture() for row in rows)
        for start in range(0, len(table), _ROW_GROUP):
            part = table[start : start + _ROW_GROUP]
            size = len(part["id"])
            part["image"] = [data and {"bytes": data, "path": None} for data in islice(pictures, size)]
            writer.write_table(pa.Table.from_pydict(part, schema=features.arrow_schema))
    os.replace(aside, path)
    return path


def _flat(columns: Row) -> Row:
    """Scenes as texts: Parquet gives a column one type, and scenes are of different make."""
    if isinstance(columns.get("scene"), dict):
        columns["scene"] = json.dumps(columns["scene"])
    return columns


def _named(rows: Iterable[PreparedRow]) -> Iterator[tuple[str, PreparedRow]]:
    """Rows with ids: their own, or one made of source and number where it is taken."""
    taken: set[str] = set()
    for row in rows:
        name = str(row.values.get("id") or row.prompt.id)
        if name in taken:
            name = f"{row.provenance['source']}-{row.provenance['row']}"
        while name in taken:
            name += "+"
        taken.add(name)
        yield name, row
