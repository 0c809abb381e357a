"""Reads a run's folder, finished or killed half-way: config, metrics, environment, sample pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dina.eval.pictures import Picture, png_bytes, read_picture
from dina.rollout.protocol import Sample


@dataclass
class SavedSample:
    """One sample that a run kept to be looked at."""

    step: int
    prompt: str
    reward: float | None
    reason: str = ""
    answer: str | None = None
    image: Picture | None = field(default=None, repr=False)


@dataclass
class Run:
    """What a run's folder holds. Everything may be missing, and ``notes`` says what was unreadable.

    Attributes:
        metrics: one mapping per logged step, in order; values that are no finite number are NaN.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    samples: list[SavedSample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Metric names in order of first appearance, without ``step``."""
        return [name for name in dict.fromkeys(key for row in self.metrics for key in row) if name != "step"]

    def has(self, name: str) -> bool:
        return any(not math.isnan(row.get(name, math.nan)) for row in self.metrics)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of the steps that logged ``name``; a value that was not finite is NaN."""
        rows = [row for row in self.metrics if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


def read_run(folder: Path) -> Run:
    """Reads the folder; unreadable files become notes, never an exception, so that any run can be reported."""
    run = Run(folder)
    run.config = _read_mapping(folder / "config.yaml", run.notes)
    run.environment = _read_mapping(folder / "environment.json", run.notes)
    run.metrics = _read_metrics(folder / "metrics.jsonl", run.notes)
    run.samples = read_samples(folder / "samples")
    return run


def save_samples(
    folder: Path,
    step: int,
    samples: Sequence[Sample],
    rewards: Sequence[float | None],
    reasons: Sequence[str] | None = None,
) -> None:
    """Writes ``step_<n>.jsonl`` and ``step_<n>/<i>.png`` into a run's ``samples`` folder."""
    pictures = folder / f"step_{step:06d}"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (sample, reward) in enumerate(zip(samples, rewards, strict=True)):
        picture = f"{pictures.name}/{number:03d}.png" if sample.image is not None else None
        line = {
            "step": step,
            "id": sample.prompt.id,
            "prompt": sample.prompt.text,
            "seed": sample.request.seed,
            "reward": reward if reward is not None and math.isfinite(reward) else None,
            "reason": reasons[number] if reasons else "",
            "answer": sample.text,
            "picture": picture,
        }
        if picture is not None and sample.image is not None:
            (folder / picture).write_bytes(png_bytes(sample.image))
        lines.append(json.dumps(line, ensure_ascii=False))
    (folder / f"{pictures.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_samples(folder: Path) -> list[SavedSample]:
    """The samples that ``save_samples`` wrote, by step."""
    base, found = folder.resolve(), []
    for path in sorted(folder.glob("step_*.jsonl")):
        for line in _json_lines(path)[0]:
            inside = line.get("picture") and (base / line["picture"]).resolve().is_relative_to(base)
            found.append(
                SavedSample(
                    step=int(line.get("step") or 0),
                    prompt=str(line.get("prompt", "")),
                    reward=line.get("reward"),
                    reason=str(line.get("reason") or ""),
                    answer=line.get("answer"),
                    image=read_picture(base / line["picture"]) if inside else None,
                )
            )
    return found


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` finite values at each step; NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    real = np.isfinite(array)
    total, count = np.cumsum(np.where(real, array, 0.0)), np.cumsum(real)
    total[window:] -= total[:-window].copy()
    count[window:] -= count[:-window].copy()
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).tolist()


def _read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{path.name} is unreadable: {error}")
        return {}
    return data if isinstance(data, dict) else {}


def _read_metrics(path: Path, notes: list[str]) -> list[dict[str, float]]:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    lines, broken = _json_lines(path)
    if broken:
        notes.append(f"{broken} line(s) of {path.name} are unreadable (a run that was killed leaves one).")
    # A resumed run repeats the steps after its checkpoint; the later line is the one that counts.
    by_step = {line["step"]: line for line in lines if isinstance(line.get("step"), int)}
    return [_numbers(by_step[step]) for step in sorted(by_step)]


def _json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    lines, broken = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if text.strip():
            try:
                line = json.loads(text)
                lines.append(line) if isinstance(line, dict) else None
            except ValueError:
                broken += 1
    return lines, broken


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numeric entries; null and words such as "NaN" are a value that was not finite."""
    out = {}
    for key, value in line.items():
        if value is None or (isinstance(value, str) and value.lower() in ("nan", "inf", "-inf", "infinity")):
            out[key] = math.nan
        elif isinstance(value, int | float):
            out[key] = float(value) if math.isfinite(value) else math.nan
    return out
