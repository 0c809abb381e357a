"""The outcome of a benchmark: its rows, its summary with intervals, and its JSON form."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dina.errors import DinaError
from dina.eval.pictures import PictureStats, png_bytes, read_picture
from dina.eval.statistics import Interval, mean_interval, stratified_interval

SIX = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
EXTRA = ("text_rendering", "vqa")


def averaged(tags: Iterable[str]) -> list[str]:
    """The categories whose mean is the overall score: GenEval's, and where there is none of these, your own."""
    found = list(dict.fromkeys(tags))
    return [tag for tag in found if tag in SIX] or [tag for tag in found if tag not in EXTRA]


@dataclass
class Row:
    """One scored sample.

    Attributes:
        score: 0..1; None where scoring failed, and ``failure`` then says why.
        scores, guards: further numbers of the sample.
        answer, expected: what the model said and what was right, for questions.
        picture: path of the picture relative to the JSON file, once saved.
        image: ``[H, W, 3]`` uint8, the drawn picture, or the one that was asked about.
    """

    prompt_id: str
    tag: str
    task: str
    prompt: str
    seed: int
    index: int
    score: float | None
    scores: dict[str, float] = field(default_factory=dict)
    guards: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    failure: str | None = None
    answer: str | None = None
    expected: str | None = None
    finish_reason: str = "stop"
    picture: str | None = None
    image: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def sample(self) -> tuple[str, int]:
        return self.prompt_id, self.index

    def value(self, key: str) -> float | None:
        if key == "score":
            return self.score
        if key.startswith("guards/"):
            return self.guards.get(key.removeprefix("guards/"))
        return self.scores.get(key)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "image"}
        for key in ("scores", "guards"):
            data[key] = {name: value for name, value in data[key].items() if math.isfinite(value)}
        return data


@dataclass
class BenchmarkResult:
    """Rows of one model on one prompt set.

    Attributes:
        label: the rule that scored, for instance ``GenEval-style (scenes detector)``.
        name: the model's name, for instance its checkpoint.
        settings: seeds and sampling, as plain data.
        pictures: how varied the drawn pictures are.
        seconds: wall time of drawing and scoring.
    """

    label: str
    name: str
    settings: dict[str, Any]
    rows: list[Row]
    pictures: PictureStats
    seconds: float = 0.0

    @property
    def tags(self) -> list[str]:
        """The categories at hand: GenEval's six in their usual order, then text and questions, then others."""
        found = dict.fromkeys(row.tag for row in self.rows)
        known = [tag for tag in (*SIX, *EXTRA) if tag in found]
        return known + [tag for tag in found if tag not in known]

    @property
    def averaged(self) -> list[str]:
        """The categories of drawings whose mean is the overall score; answers stand for themselves."""
        drawn = {row.tag for row in self.rows if row.task == "t2i"}
        return averaged(tag for tag in self.tags if tag in drawn)

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.failure is not None]

    def values(self, tag: str | None = None, key: str = "score") -> dict[tuple[str, int], float]:
        """(prompt id, number of the sample) -> ``key``, where it is a finite number.

        Args:
            tag: a category, or all of them.
            key: ``score``, a name in ``Row.scores``, or ``guards/<name>``.
        """
        chosen = ((row, row.value(key)) for row in self.rows if tag is None or row.tag == tag)
        return {row.sample: value for row, value in chosen if value is not None and math.isfinite(value)}

    def prompt_means(self, tag: str | None = None, key: str = "score") -> dict[str, float]:
        """Prompt id -> mean of ``key`` over the prompt's samples; prompts without any value are left out."""
        return prompt_means(self.values(tag, key))

    def category(self, tag: str, key: str = "score") -> Interval:
        """Mean of one category with its interval over prompts."""
        return mean_interval(list(self.prompt_means(tag, key).values()))

    @cached_property
    def overall(self) -> Interval:
        """Unweighted mean of the ``averaged`` categories, with its stratified interval."""
        return stratified_interval({tag: list(self.prompt_means(tag).values()) for tag in self.averaged})

    @property
    def score_names(self) -> list[str]:
        return _names(row.scores for row in self.rows)

    @property
    def guard_names(self) -> list[str]:
        return _names(row.guards for row in self.rows)

    def summary(self) -> dict[str, Any]:
        """Everything but the rows, as plain JSON data. Scores are shares in 0..1."""
        return {
            "label": self.label,
            "name": self.name,
            "settings": self.settings,
            "overall": self.overall.to_json() | {"categories": self.averaged},
            "categories": {tag: self._category_summary(tag) for tag in self.tags},
            "guards": {
                name: mean_interval(list(self.prompt_means(key=f"guards/{name}").values())).to_json()
                for name in self.guard_names
            },
            "pictures": self.pictures.to_json(),
            "samples": len(self.rows),
            "failures": len(self.failures),
            "failure_reasons": dict(Counter(row.failure for row in self.failures).most_common()),
            "seconds": round(self.seconds, 3),
        }

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Plain numbers for a training log: ``<prefix>/overall``, one per category, picture variety, failures."""
        numbers = {"overall": self.overall.mean, "unique_ratio": self.pictures.unique_ratio}
        numbers |= {tag: self.category(tag).mean for tag in self.tags}
        numbers["fail_rate"] = len(self.failures) / len(self.rows)
        return {f"{prefix}/{name}": value for name, value in numbers.items() if math.isfinite(value)}

    def _category_summary(self, tag: str) -> dict[str, Any]:
        rows = [row for row in self.rows if row.tag == tag]
        further = {name: self.category(tag, name) for name in _names(row.scores for row in rows)}
        return self.category(tag).to_json() | {
            "samples": len(rows),
            "failures": sum(row.failure is not None for row in rows),
            "further": {name: interval.to_json() for name, interval in further.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """The summary and the rows; pictures are named by their path, not embedded."""
        return self.summary() | {"rows": [row.to_json() for row in self.rows]}

    def save(self, path: Path, pictures: bool = True) -> None:
        """Writes ``path`` (JSON) and, beside it, a folder ``<stem>_pictures`` of PNG files.

        Raises:
            DinaError: the place cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if pictures:
                self._save_pictures(path)
            text = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise DinaError(f"Cannot write the evaluation {path}: {error.strerror}.") from error

    def _save_pictures(self, path: Path) -> None:
        folder = path.parent / f"{path.stem}_pictures"
        folder.mkdir(exist_ok=True)
        for number, row in enumerate(self.rows):
            if row.image is not None:
                row.picture = f"{folder.name}/{number:05d}.png"
                (path.parent / row.picture).write_bytes(png_bytes(row.image))

    @classmethod
    def load(cls, path: Path) -> BenchmarkResult:
        """Reads what ``save`` wrote; a picture that is gone is None.

        Raises:
            DinaError: the file is missing or was not written by ``save``.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**row) for row in data["rows"]]
            stats = PictureStats.from_json(data["pictures"])
            result = cls(data["label"], data["name"], data["settings"], rows, stats, data["seconds"])
        except OSError as error:
            raise DinaError(f"Cannot read the evaluation {path}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DinaError(f"{path} is no evaluation written by `dina evaluate` ({error}).") from error
        base = path.parent.resolve()
        for row in rows:
            if row.picture and (base / row.picture).resolve().is_relative_to(base):
                row.image = read_picture(base / row.picture)
        return result


def prompt_means(values: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Averages the samples of each prompt."""
    grouped: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        grouped.setdefault(prompt, []).append(value)
    return {prompt: math.fsum(found) / len(found) for prompt, found in grouped.items()}


def _names(dictionaries: Iterable[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for numbers in dictionaries for name in numbers))
