"""A file of JSON lines that grows, and that a killed process leaves readable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dina.errors import DinaError


class RowLog:
    """Appends rows in batches; what was appended survives a kill, and a half-written end is cut off on opening.

    Args:
        path: made when the first rows come.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            whole = path.read_bytes()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                with path.open("rb+") as file:
                    file.truncate(end)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows so far, in order."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise DinaError(
                        f"{self.path}:{number} is damaged ({error.msg}); delete the file, and it is made anew"
                    ) from None

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raises: DinaError: the disk is full or the file cannot be written."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DinaError(f"{self.path} cannot be written: {error.strerror}") from error
