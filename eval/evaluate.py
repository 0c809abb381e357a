"""Evaluates checkpoints: opens them one at a time, shows progress, saves results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.compare import Comparison, compare
from dina.eval.judge import Judge
from dina.eval.result import BenchmarkResult
from dina.rollout.protocol import Prompt, RolloutEngine

EngineOpener = Callable[[Path], RolloutEngine]


def open_torch_engine(checkpoint: Path, batch_size: int = 64, device: str = "cpu") -> RolloutEngine:
    """The reference engine on a checkpoint folder.

    Raises:
        DinaError: the folder is missing, truncated or no DiNA checkpoint.
    """
    from dina.model.checkpoint import load_checkpoint
    from dina.rollout.torch_engine import TorchEngine

    return TorchEngine(load_checkpoint(checkpoint, device=device), batch_size)


def evaluate_checkpoint(
    checkpoint: Path,
    prompts: Sequence[Prompt],
    judge: Judge,
    settings: BenchmarkSettings | None = None,
    *,
    out: Path | None = None,
    open_engine: EngineOpener = open_torch_engine,
    console: Console | None = None,
) -> BenchmarkResult:
    """Draws and scores all prompts with one checkpoint.

    Args:
        out: a folder that gets ``evaluation.json`` and the pictures.
        open_engine: what loads the checkpoint; the engine is closed afterwards.
        console: where the progress bar goes; none is shown without it.

    Raises:
        DinaError: the checkpoint or the prompts are unusable.
    """
    engine = open_engine(checkpoint)
    try:
        with _progress(console, f"evaluating {checkpoint}") as on_sample:
            result = run_benchmark(
                engine, prompts, judge, settings, name=str(checkpoint), on_sample=on_sample
            )
    finally:
        engine.close()
    if out is not None:
        result.save(out / "evaluation.json")
    return result


def compare_checkpoints(
    before: Path,
    after: Path,
    prompts: Sequence[Prompt],
    judge: Judge,
    settings: BenchmarkSettings | None = None,
    *,
    out: Path | None = None,
    open_engine: EngineOpener = open_torch_engine,
    console: Console | None = None,
) -> Comparison:
    """Evaluates both checkpoints on the same prompts with the same seeds, one after the other, and pairs them.

    Where both lie inside run folders, what differs between the runs' ``config.yaml`` is listed.

    Args:
        before, after: checkpoint folders, or results that ``evaluate_checkpoint`` saved (``evaluation.json``).
        out: a folder that gets ``before.json``, ``after.json``, ``comparison.json`` and the pictures.
    """
    first, second = (
        BenchmarkResult.load(path)
        if path.suffix == ".json"
        else evaluate_checkpoint(path, prompts, judge, settings, open_engine=open_engine, console=console)
        for path in (before, after)
    )
    configs = run_config(before), run_config(after)
    comparison = compare(first, second, (configs[0], configs[1]) if all(configs) else None)
    if out is not None:
        comparison.save(out)
    return comparison


def first_of_each_category(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most ``limit`` prompts per tag, in their order."""
    kept: list[Prompt] = []
    counts: dict[str, int] = {}
    for prompt in prompts:
        counts[prompt.tag] = counts.get(prompt.tag, 0) + 1
        if limit is None or counts[prompt.tag] <= limit:
            kept.append(prompt)
    return kept


def run_config(checkpoint: Path) -> dict[str, object]:
    """The resolved recipe of the run that a checkpoint (``<run>/checkpoints/step_<n>``) belongs to, or nothing."""
    for folder in (checkpoint, *checkpoint.resolve().parents[:2]):
        if (folder / "config.yaml").is_file():
            data = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            return data if isinstance(data, dict) else {}
    return {}


@contextmanager
def _progress(console: Console | None, text: str) -> Iterator[Callable[[int, int], None] | None]:
    if console is None:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
