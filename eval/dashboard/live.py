"""One run as the dashboard sees it: files that grow are read on from where the last look ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import yaml

from dina.eval.alerts import Alert, AlertWatch, watch_for
from dina.eval.dashboard.store import Grid, MetricStore, StoreView
from dina.eval.runs import METRICS_FILE, held_out_rewards, read_outcome
from dina.eval.sample_log import SampleIndex

BUDGET = 0.25
"""Seconds that one look at a run's files may take; what is left is read with the next."""

_SILENT = 120.0
_SILENT_STEPS = 10

State = Literal["waiting", "running", "silent", "finished", "stopped", "failed"]


class LiveRun:
    """A run's folder. Use it while holding ``lock``: requests are served in several threads.

    Args:
        folder: need not hold anything yet.
        name: what addresses call it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.lock = RLock()
        self.samples = SampleIndex(folder)
        self.complete = False
        self._config_time = 0.0
        self.config: Mapping[str, Any] = {}
        self._read_config()
        self.store = MetricStore(folder, on_row=self._observe, on_restart=self._restart)
        self._restart()

    def refresh(self, seconds: float = BUDGET) -> None:
        """Reads on; ``complete`` is False where more is left than the time allowed."""
        end = time.monotonic() + seconds
        self._read_config()
        whole = self.store.refresh(seconds)
        self.complete = whole and self.samples.refresh(max(end - time.monotonic(), 0.02))

    @property
    def version(self) -> str:
        """Changes whenever there is something new to show."""
        return f"{len(self.store.steps)}-{self.step}-{len(self.samples)}-{self.state}-{self.complete}"

    @property
    def step(self) -> int:
        """The last one that was logged; 0 before the first."""
        return int(self.store.steps[-1]) if len(self.store.steps) else 0

    @property
    def max_steps(self) -> int | None:
        wanted = (self.config.get("run") or {}).get("max_steps")
        return wanted if isinstance(wanted, int) else None

    @property
    def state(self) -> State:
        if (outcome := read_outcome(self.folder)) is not None:
            return outcome.state
        if self.max_steps is not None and self.step >= self.max_steps:
            return "finished"
        try:
            quiet = time.time() - (self.folder / METRICS_FILE).stat().st_mtime
        except OSError:
            return "waiting"
        allowed = max(_SILENT, _SILENT_STEPS * float(self.store.last.get("step_time") or 0.0))
        return "running" if quiet < allowed else "silent"

    @property
    def error(self) -> str:
        """Of a failed run, in words."""
        outcome = read_outcome(self.folder)
        return outcome.error if outcome else ""

    @property
    def alerts(self) -> list[Alert]:
        return self._watch.alerts

    def view(self, first: int | None = None, last: int | None = None) -> StoreView:
        """The metrics between two steps."""
        steps = self.store.steps
        inside = steps[(steps >= (first or 0)) & (steps <= (last if last is not None else self.step))]
        return StoreView(self.store, Grid.over(inside), held_out_rewards(self.config))

    def _observe(self, step: int, row: Mapping[str, float | None]) -> None:
        self._watch.observe(step, row)

    def _restart(self) -> None:
        self._watch: AlertWatch = watch_for(self.config)

    def _read_config(self) -> None:
        file = self.folder / "config.yaml"
        try:
            changed = file.stat().st_mtime
            if changed != self._config_time:
                config = yaml.safe_load(file.read_text(encoding="utf-8"))
                self.config, self._config_time = config if isinstance(config, dict) else {}, changed
        except (OSError, ValueError, yaml.YAMLError):
            return


def find_runs(paths: Sequence[Path]) -> list[LiveRun]:
    """The runs that paths name: folders of runs, or folders that hold some. Each gets as short a name as tells it."""
    folders = list(dict.fromkeys(run.resolve() for path in paths for run in _runs_in(path)))
    names = [folder.name for folder in folders]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["·".join(folder.parts[-depth:]) for folder in folders]
    return [LiveRun(folder, name) for folder, name in zip(folders, names, strict=True)]


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (METRICS_FILE, "config.yaml"))


def _runs_in(path: Path) -> list[Path]:
    if is_run(path) or not path.is_dir():
        return [path]
    inside = sorted(child for child in path.iterdir() if child.is_dir() and is_run(child))
    return inside or [path]
