"""Where the numbers of a run go: ``metrics.jsonl``, the console, and W&B where it is asked for."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dina.errors import DinaError
from dina.eval.alerts import Alert, AlertWatch, watch_for
from dina.eval.runs import METRICS_FILE, Outcome, write_outcome
from dina.eval.sample_log import FILE as SAMPLES_FILE
from dina.eval.sample_log import FOLDER as SAMPLES_FOLDER
from dina.rl.recipe.config import TrainConfig

log = logging.getLogger(__name__)

_WANDB_ID = "wandb_run_id.txt"
_HEADLINES = (
    ("reward", "reward", "{:.3f}"),
    ("reward_std", "±", "{:.3f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("filter/kept", "kept", "{:.0%}"),
    ("mismatch/max_prob_diff", "mismatch", "{:.1e}"),
    ("grad_norm", "grad", "{:.2f}"),
    ("step_time", "", "{:.1f} s"),
    ("eval/overall", "eval", "{:.3f}"),
)


class MetricsLogger:
    """Logs the metrics of each step. Use it in a ``with`` block.

    Args:
        folder: the run's folder; ``metrics.jsonl`` has one object per step, with ``step``.
        config: says how often the console gets a line and whether W&B takes part.
        finished: steps that are done already; later lines of an interrupted run are cut off.
        console: where progress is shown; by default the terminal, on stderr.

    Raises:
        DinaError: W&B is asked for and not installed, or does not start.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, finished: int = 0, console: Console | None = None
    ) -> None:
        self.config = config
        self.console = console or Console(stderr=True)
        self._path = folder / METRICS_FILE
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self._path, folder / SAMPLES_FOLDER / SAMPLES_FILE):
            truncate_steps(path, finished)
        write_outcome(folder, None)
        self._file = self._path.open("a", encoding="utf-8")
        self._step = finished
        self._watch = self._open_watch()
        self._stop: Alert | None = None
        self._wandb = _start_wandb(folder, config) if "wandb" in config.run.report_to else None
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=config.run.max_steps, completed=finished)

    def __enter__(self) -> MetricsLogger:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)
        finished = self._step >= self.config.run.max_steps
        outcome = Outcome(self._step, "finished" if finished else "stopped")
        if error is not None and not isinstance(error, KeyboardInterrupt):
            text = str(error) if isinstance(error, DinaError) else f"{type(error).__name__}: {error}"
            outcome = Outcome(self._step, "failed", text)
        write_outcome(self._path.parent, outcome)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the numbers of ``step``. A number that is not finite is written as ``null``.

        Warns where a rule of the recipe's ``alerts:`` begins to hold.

        Raises:
            DinaError: the disk is full or the file cannot be written.
        """
        try:
            self._file.write(json.dumps({"step": step, **_finite(metrics)}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise DinaError(f"{self._path} cannot be written: {error.strerror}") from error
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step, commit=True)
        self._step = step
        for alert in self._watch.observe(step, metrics):
            self._tell(alert)
        summary = headline(metrics)
        self._progress.update(self._task, completed=step, description=summary)
        run = self.config.run
        if step % run.logging_steps == 0 or step == run.max_steps:
            width = len(str(run.max_steps))
            self.console.print(
                f"step {step:>{width}}/{run.max_steps}  {summary}", highlight=False, soft_wrap=True
            )

    def stop_on_alert(self) -> None:
        """Raises: DinaError: a rule fired that is to stop the run."""
        if (alert := self._stop) is not None:
            raise DinaError(
                f"step {alert.since}: {alert.rule.title.lower()}: {alert.text}. The recipe stops a run for this "
                f"(alerts.{alert.rule.name}.stop). What to try: {alert.rule.advice}. `dina doctor {self._path.parent}` "
                "says more"
            )

    def _tell(self, alert: Alert) -> None:
        log.warning("%s: %s. What to try: %s", alert.rule.title, alert.text, alert.rule.advice)
        if self._wandb is not None:
            self._wandb.alert(alert.rule.title, f"step {alert.since}: {alert.text}. {alert.rule.advice}")
        if alert.rule.stop and self._stop is None:
            self._stop = alert

    def _open_watch(self) -> AlertWatch:
        """The rules, as they stand after the steps that are done; what fired then has been told."""
        watch = watch_for(self.config.model_dump(mode="json"))
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                for entry in map(json.loads, file):
                    watch.observe(entry.pop("step"), entry)
        return watch


def headline(metrics: Mapping[str, float]) -> str:
    """The few numbers that fit on a line of the console."""
    parts = [
        f"{word} {form.format(metrics[name])}".strip()
        for name, word, form in _HEADLINES
        if name in metrics and math.isfinite(metrics[name])
    ]
    return "  ".join(parts)


def truncate_steps(path: Path, finished: int) -> None:
    """Cuts off what a resumed run will write again: steps after ``finished``, and a line that a kill cut short.

    Args:
        path: JSON lines that each have a ``step``; nothing happens if there is no such file.
    """
    if not path.exists():
        return
    aside = path.with_name(path.name + ".tmp")
    with path.open(encoding="utf-8", errors="replace") as lines, aside.open("w", encoding="utf-8") as kept:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("step", math.inf) <= finished:
                kept.write(line if line.endswith("\n") else line + "\n")
    os.replace(aside, path)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _start_wandb(folder: Path, config: TrainConfig) -> Any:
    """Starts or resumes the W&B run of this folder. ``WANDB_MODE=offline`` works without a network."""
    try:
        import wandb
    except ImportError:
        raise DinaError(
            'run.report_to names wandb, which is not installed: pip install "dina-rl[wandb]", or run.report_to=[]'
        ) from None
    id_file = folder / _WANDB_ID
    known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
    try:
        run = wandb.init(
            project=config.run.wandb_project,
            name=config.run.run_name or folder.name,
            id=known,
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
        )
    except Exception as error:
        raise DinaError(
            f"W&B does not start ({error}). Log in, set WANDB_MODE=offline, or run.report_to=[]"
        ) from error
    id_file.write_text(run.id, encoding="utf-8")
    return run
