"""Reads a run's folder, finished or killed half-way: config, metrics, environment, sample pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from dina.eval.sample_log import SampleIndex
from dina.rewards.protocol import RewardSpec

METRICS_FILE, OUTCOME_FILE = "metrics.jsonl", "outcome.json"


@dataclass(frozen=True)
class Curve:
    """A metric over steps. ``low`` and ``high`` are the extremes where a value stands for several steps."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


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
    samples: SampleIndex = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = SampleIndex(self.folder)

    @property
    def held_out(self) -> frozenset[str]:
        """Names of the rewards that are watched and not trained on."""
        return held_out_rewards(self.config)

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

    def curve(self, name: str) -> Curve:
        """The same as a curve to draw."""
        return Curve(*self.series(name))


def read_run(folder: Path) -> Run:
    """Reads the folder; unreadable files become notes, never an exception, so that any run can be reported."""
    run = Run(folder)
    run.config = _read_mapping(folder / "config.yaml", run.notes)
    run.environment = _read_mapping(folder / "environment.json", run.notes)
    run.metrics = _read_metrics(folder / METRICS_FILE, run.notes)
    run.samples.refresh()
    return run


def held_out_rewards(config: Mapping[str, Any]) -> frozenset[str]:
    """Names of the rewards that a run's config watches and does not train on."""
    return frozenset(spec.label for spec in reward_specs(config) if not spec.trained)


def reward_specs(config: Mapping[str, Any]) -> list[RewardSpec]:
    """The rewards of a run's config, as far as they can be understood."""
    known = {f.name for f in fields(RewardSpec)}
    entries = config.get("rewards") or []
    return [
        RewardSpec(**{key: value for key, value in entry.items() if key in known})
        for entry in entries
        if isinstance(entry, dict) and "use" in entry
    ]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the last one that was logged.
        state: ``finished`` all its steps, ``stopped`` by its user, or ``failed``.
        error: of a failed run, in words.
    """

    step: int
    state: Literal["finished", "stopped", "failed"]
    error: str = ""


def write_outcome(run: Path, outcome: Outcome | None) -> None:
    """Notes how the run ended; ``None`` takes the note away, for a run that begins or goes on."""
    file = run / OUTCOME_FILE
    if outcome is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(asdict(outcome), ensure_ascii=False) + "\n", encoding="utf-8")


def read_outcome(run: Path) -> Outcome | None:
    """What ``write_outcome`` noted; ``None`` for a run that goes on, or was killed."""
    try:
        return Outcome(**json.loads((run / OUTCOME_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


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
