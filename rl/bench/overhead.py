"""The share of a step's wall time in which nothing is generated, scored, compared, updated or synchronised."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from dina.rl.bench.options import Options, Row
from dina.rl.loop import Trainer
from dina.rl.metrics import MetricsLogger
from dina.rl.recipe.config import TrainConfig

PHASES = ("generate", "score", "compare", "update", "sync")


def measure_overhead(options: Options) -> list[Row]:
    """The quickstart's steps, one worker of each role: over Ray, and in one process."""
    steps = options.repeats(8)
    rows = []
    for runner in ("ray", "local"):
        config = options.recipe(f"overhead-{runner}", f"rl.runner={runner}", f"run.max_steps={steps + 1}")
        rows.append(summary(config, time_steps(config)[1:]))
    return rows


def time_steps(config: TrainConfig) -> list[dict[str, float]]:
    """The metrics of each step of a run, with ``wall``: seconds until the next step, logging included."""
    folder, lines = Path(config.run.output_dir), []
    trainer = Trainer(config, folder)
    try:
        with MetricsLogger(folder, config) as metrics:
            for number in range(1, config.run.max_steps + 1):
                start = time.perf_counter()
                values = trainer.step(number)
                metrics.log(number, values)
                lines.append({**values, "wall": time.perf_counter() - start})
    finally:
        trainer.close()
    return lines


def summary(config: TrainConfig, steps: list[dict[str, float]]) -> Row:
    """Medians over steps; ``overhead`` is that of the shares."""
    seconds = {name: [step[f"timing_s/{name}"] for step in steps] for name in PHASES}
    shares = [1 - sum(step[f"timing_s/{name}"] for name in PHASES) / step["wall"] for step in steps]
    return {
        "runner": config.rl.runner,
        "engine": config.rollout.engine,
        "step": round(statistics.median(step["wall"] for step in steps), 3),
        **{name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "overhead": round(statistics.median(shares), 4),
    }
