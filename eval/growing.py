"""Reads a file of lines that another process appends to, from where it stopped the last time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

CHUNK = 2**20


class GrowingFile:
    """A file that grows. It may not be there yet, may end in half a line, and may be replaced by a shorter one.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._inode: int | None = None

    def restarted(self) -> bool:
        """True, once, if the file was replaced or cut, so that what was read no longer counts."""
        try:
            stat = self.path.stat()
        except OSError:
            return False
        again = self._inode is not None and (stat.st_ino != self._inode or stat.st_size < self.offset)
        if again:
            self.offset = 0
        self._inode = stat.st_ino
        return again

    def pending(self) -> bool:
        """True if there may be something new to read."""
        try:
            stat = self.path.stat()
        except OSError:
            return False
        return stat.st_size != self.offset or (self._inode is not None and stat.st_ino != self._inode)

    def read(self, size: int = CHUNK) -> list[tuple[int, bytes]]:
        """The next whole lines with the offsets at which they begin; empty if there is none yet."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(size)
                if data and b"\n" not in data:
                    data += file.readline()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        lines, start = [], self.offset
        for line in whole.split(b"\n")[:-1]:
            lines.append((start, line))
            start += len(line) + 1
        self.offset = start
        return lines

    def lines_at(self, offsets: Iterable[int]) -> Iterator[bytes]:
        """The lines that begin at ``offsets``, as ``read`` gave them."""
        offsets = list(offsets)
        if not offsets:
            return
        with self.path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield file.readline()
