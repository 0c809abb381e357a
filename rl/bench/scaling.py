"""What a second rollout worker and drawing ahead bring when rewards take their time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dina.rl.bench.options import Options, Row
from dina.rl.bench.overhead import time_steps

PROMPTS, GENERATIONS, SCORERS = 4, 4, 4


def slow(prompts: Sequence[str], seconds: float = 0.5, **columns: Any) -> list[float]:
    """A reward that takes ``seconds`` per sample of waiting, as one that asks a server does."""
    time.sleep(seconds * len(prompts))
    return [float(index % 2) for index in range(len(prompts))]


def measure_scaling(options: Options) -> list[Row]:
    """One row per number of rollout workers and mode: steps and positions per second, against the first row."""
    rows: list[Row] = []
    for workers in (1, 2):
        for mode in ("sync", "async"):
            rows.append({"workers": workers, "mode": mode, **measure(options, workers, mode)})
    for row in rows:
        row["speedup"] = round(row["steps_s"] / rows[0]["steps_s"], 2)
    return rows


def measure(options: Options, workers: int, mode: str) -> Row:
    """Rates of a run after its first step, in which nothing can be drawn ahead."""
    seconds = 0.05 if options.quick else 0.5
    config = options.recipe(
        f"scaling-{workers}-{mode}",
        f"run.max_steps={options.repeats(8) + 1}",
        "rl.runner=ray",
        f"rl.mode={mode}",
        f"ray.rollout.workers={workers}",
        f"ray.reward={{workers: {SCORERS}, cpus: 0.1}}",
        f"algorithm={{prompts_per_step: {PROMPTS}, num_generations: {GENERATIONS}, minibatches: 1}}",
        "filters.entropy_k=null",
        "data.sampling=shuffle",
        "data.tags=[counting]",
        f"rewards=[{{use: '{__name__}:slow', kwargs: {{seconds: {seconds}}}}}]",
    )
    steps = time_steps(config)[1:]
    wall = sum(step["wall"] for step in steps)
    return {
        "engine": config.rollout.engine,
        "steps_s": round(len(steps) / wall, 3),
        "positions_s": round(sum(step["num_tokens"] for step in steps) / wall, 1),
        "staleness": max(step["staleness/max"] for step in steps),
    }
