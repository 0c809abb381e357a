"""What a run keeps of its samples, one JSON object a line, and an index that finds them again in a large file.

``samples/samples.jsonl`` has the records, ``samples/step_<n>/`` the few pictures that were kept. The index reads only
what was appended since, and holds some twenty bytes per record, so that a page of a hundred thousand samples opens
at once.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from dina.errors import DinaError
from dina.eval.growing import GrowingFile
from dina.eval.pictures import Picture, png_bytes, read_picture

FOLDER, FILE = "samples", "samples.jsonl"
PICTURE = re.compile(r"step_\d{6,}/q?\d{3,}\.png")
"""Paths of pictures below the folder of samples; nothing else is ever read as one."""

Order = Literal["step", "reward", "difference"]
Only = Literal["all", "dropped", "failed", "kept"]
_DROPPED, _FAILED, _PICTURE = 1, 2, 4


@dataclass(frozen=True)
class ScoreRecord:
    """What one reward said of a sample: its score and why, or why there is none."""

    score: float | None
    reason: str = ""
    failed: bool = False


@dataclass(frozen=True)
class DropRecord:
    """Why a filter left a sample out of the update: ``value`` exceeded ``threshold``."""

    reason: str
    value: float | None
    threshold: float | None


@dataclass(frozen=True)
class WorstRecord:
    """The action whose probability differs most between sampler and actor.

    Attributes:
        channel: ``text`` or ``level_<l>``.
        position: in the stream, prompt included.
        row, column: of the patch in the picture's grid, for a level.
        token, span: the text token, and where it stands in the answer as (start, end) in characters.
    """

    difference: float | None
    p_sampler: float | None
    p_actor: float | None
    channel: str
    position: int
    row: int | None = None
    column: int | None = None
    token: str | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class SampleRecord:
    """One sample of a step.

    Attributes:
        row: in the step's batch.
        reward: the weighted sum that it was trained on; None where it has none.
        scores: by reward, those that apply.
        picture: what the policy drew, and ``question`` what it was asked about: paths below the folder of
            samples, where they were kept.
        grid: (rows, columns) of the drawn picture in visual tokens.
        entropy: mean of its actions, in nats.
        drops: empty where no filter dropped it.
    """

    step: int
    row: int
    id: str
    prompt: str
    task: str = "t2i"
    tag: str = ""
    seed: int = 0
    group: int = 0
    index: int = 0
    weight_version: int = 0
    finish_reason: str = "stop"
    reward: float | None = None
    scores: dict[str, ScoreRecord] = field(default_factory=dict)
    answer: str | None = None
    picture: str | None = None
    question: str | None = None
    grid: tuple[int, int] | None = None
    entropy: float | None = None
    worst: WorstRecord | None = None
    drops: list[DropRecord] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """Every reward in words, and every filter that dropped it."""
        texts = []
        for name, entry in self.scores.items():
            if entry.failed:
                texts.append(f"{name} failed: {entry.reason}")
            elif entry.score is not None:
                texts.append(f"{name} {entry.score:.2f}" + (f": {entry.reason}" if entry.reason else ""))
        text = "; ".join(texts)
        return text + "".join(f" [left out: {drop.reason}]" for drop in self.drops)


def append_records(
    run: Path, records: Sequence[SampleRecord], pictures: Mapping[str, Picture] | None = None
) -> None:
    """Adds records to a run's ``samples/``, and the pictures by the paths that the records name them with."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path, picture in (pictures or {}).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(png_bytes(picture))
    lines = [json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) for record in records]
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))


def picture_path(step: int, row: int, question: bool = False) -> str:
    """Where a picture of a step is kept, below the folder of samples."""
    return f"step_{step:06d}/{'q' if question else ''}{row:03d}.png"


class SampleIndex:
    """Finds the samples of a run without holding them.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self._file = GrowingFile(self.folder / FILE)
        self._clear()

    def __len__(self) -> int:
        return self._count

    @property
    def memory(self) -> int:
        """Bytes that the index holds."""
        return sum(column.nbytes for column in self._columns.values())

    def refresh(self, seconds: float = float("inf")) -> bool:
        """Reads what has come since, for at most about ``seconds``; True if there is no more."""
        end = time.monotonic() + seconds
        while True:
            if self._file.restarted():
                self._clear()
            lines = self._file.read()
            if not lines:
                return True
            self._add([row for place, line in lines if (row := _summary(place, line)) is not None])
            if time.monotonic() > end:
                return False

    def select(
        self,
        order: Order = "step",
        only: Only = "all",
        *,
        steps: tuple[int, int] | None = None,
        pictures: bool = False,
    ) -> NDArray[np.int64]:
        """Numbers of the records to show: newest first, lowest reward first, or largest |Δp| first.

        Args:
            steps: first and last step.
            pictures: only those with a picture.
        """
        column = {name: values[: self._count] for name, values in self._columns.items()}
        flags = column["flags"]
        chosen = np.ones(self._count, dtype=bool)
        if only != "all":
            wanted = {"dropped": _DROPPED, "failed": _FAILED, "kept": 0}[only]
            chosen &= (flags & wanted > 0) if wanted else (flags & (_DROPPED | _FAILED) == 0)
        if pictures:
            chosen &= flags & _PICTURE > 0
        if steps is not None:
            chosen &= (column["step"] >= steps[0]) & (column["step"] <= steps[1])
        numbers = np.flatnonzero(chosen)
        if order == "step":
            # Within a step, what can be seen comes first.
            unseen = flags[numbers] & _PICTURE == 0
            return numbers[np.lexsort((numbers, unseen, -column["step"][numbers]))]
        values = column["reward"] if order == "reward" else -column["difference"]
        return numbers[np.argsort(values[numbers], kind="stable")]

    def steps(self) -> NDArray[np.int64]:
        """The steps that have a record with a picture."""
        flags = self._columns["flags"][: self._count]
        return np.unique(self._columns["step"][: self._count][flags & _PICTURE > 0])

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[SampleRecord]:
        """The records themselves.

        Raises:
            DinaError: the file was changed by hand.
        """
        offsets = [int(self._columns["offset"][number]) for number in numbers if 0 <= number < self._count]
        try:
            return [_RECORD.decode(line) for line in self._file.lines_at(offsets)]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DinaError(f"{self._file.path} holds a damaged record: {error}") from None

    def picture(self, path: str | None) -> Picture | None:
        """A kept picture; None where it is gone."""
        file = self.picture_file(path)
        return None if file is None else read_picture(file)

    def picture_file(self, path: str | None) -> Path | None:
        """Where a kept picture lies; None for anything that is none, or lies elsewhere through a link."""
        if path is None or not PICTURE.fullmatch(path):
            return None
        file = (self.folder / path).resolve()
        return file if file.is_file() and file.is_relative_to(self.folder.resolve()) else None

    def _clear(self) -> None:
        self._count = 0
        kinds: dict[str, Any] = {
            "offset": np.int64,
            "step": np.int64,
            "reward": np.float32,
            "difference": np.float32,
            "flags": np.uint8,
        }
        self._columns: dict[str, NDArray[Any]] = {n: np.empty(1024, dtype=k) for n, k in kinds.items()}

    def _add(self, rows: Sequence[tuple[int, int, float, float, int]]) -> None:
        if not rows:
            return
        start, self._count = self._count, self._count + len(rows)
        while self._count > len(self._columns["offset"]):
            self._columns = {n: np.concatenate([c, np.empty_like(c)]) for n, c in self._columns.items()}
        for column, values in zip(self._columns.values(), zip(*rows, strict=True), strict=True):
            column[start : self._count] = values


class _Worst(msgspec.Struct):
    difference: float | None


class _Score(msgspec.Struct):
    failed: bool = False


class _Summary(msgspec.Struct):
    """What the index takes from a record; the rest of the line is passed over unread."""

    step: int
    reward: float | None
    scores: dict[str, _Score] = {}
    picture: str | None = None
    worst: _Worst | None = None
    drops: list[msgspec.Raw] = []

    @property
    def flags(self) -> int:
        failed = any([score.failed for score in self.scores.values()])
        return _DROPPED * bool(self.drops) | _FAILED * failed | _PICTURE * (self.picture is not None)


_SUMMARY, _RECORD = msgspec.json.Decoder(_Summary), msgspec.json.Decoder(SampleRecord)


def _summary(offset: int, line: bytes) -> tuple[int, int, float, float, int] | None:
    """A line's values for the columns of the index; ``None`` for a damaged line.

    A sample without a reward comes last and a difference that is no number first, so both are infinite.
    """
    try:
        record = _SUMMARY.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    difference = 0.0 if record.worst is None else _number(record.worst.difference)
    return offset, record.step, _number(record.reward), difference, record.flags


def _number(value: float | None) -> float:
    return float("inf") if value is None else value
