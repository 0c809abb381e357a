from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dina.eval.dashboard import pages
from dina.eval.dashboard.live import LiveRun
from dina.eval.dashboard.store import POINTS, Grid, MetricStore
from tests.eval.dashboard.world import long_run

STEPS, SAMPLES = 10_000, 100_000
SECONDS = 2.0
MEGABYTES = 40


def write(run: Path, rows: list[dict[str, object]], mode: str = "a") -> None:
    with (run / "metrics.jsonl").open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def store_of(run: Path, **options: int) -> MetricStore:
    store = MetricStore(run, **options)
    assert store.refresh()
    return store


def whole(store: MetricStore, points: int = POINTS) -> Grid:
    return Grid.over(store.steps, points)


def test_what_is_appended_is_read_on(tmp_path: Path) -> None:
    seen: list[int] = []
    store = MetricStore(tmp_path, on_row=lambda step, row: seen.append(step))
    assert store.refresh() and len(store.steps) == 0
    write(tmp_path, [{"step": 1, "reward": 0.5}, {"step": 2, "reward": None, "kl": 1.0}])
    store.refresh()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    store.refresh()
    assert store.steps.tolist() == seen == [1, 2]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ard": 0.25}\nno json\n{"step": "4"}\n')
    store.refresh()
    assert store.steps.tolist() == seen == [1, 2, 3]
    assert (store.curve("reward", whole(store)).x, store.curve("reward", whole(store)).y) == (
        [1, 3],
        [0.5, 0.25],
    )
    assert store.curve("kl", whole(store)).x == [2]
    assert store.curve("nothing", whole(store)).x == ()


def test_a_resumed_run_replaces_its_later_steps(tmp_path: Path) -> None:
    write(tmp_path, [{"step": step, "reward": 1.0} for step in range(1, 6)])
    store = store_of(tmp_path)
    write(tmp_path, [{"step": 3, "reward": 2.0}])
    store.refresh()
    assert store.steps.tolist() == [1, 2, 3]
    aside = tmp_path / "aside"
    aside.write_text('{"step": 1, "reward": 7.0}\n')
    aside.replace(tmp_path / "metrics.jsonl")
    store.refresh()
    assert store.curve("reward", whole(store)).y == [7.0]


def test_merging_keeps_means_and_every_extreme(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random(1000).astype(np.float32)
    values[[17, 600]] = 50, -50
    rows = [
        {"step": i + 1, "a": float(v), **({"rare": 1.0} if i % 100 == 0 else {})}
        for i, v in enumerate(values)
    ]
    write(tmp_path, rows)
    store = store_of(tmp_path, max_rows=64)
    assert len(store.steps) <= 64 and store.steps[-1] == 1000
    for points in (1, 7, 40):
        curve = store.curve("a", whole(store, points))
        assert curve.low is not None and curve.high is not None
        assert (min(curve.low), max(curve.high)) == (-50, 50)
    (mean,) = store.curve("a", whole(store, 1)).y
    assert mean == pytest.approx(values.mean(), rel=1e-5)
    assert store.curve("rare", whole(store, 1)).y == [1.0]


def test_few_steps_are_drawn_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 10 * i, "a": float(i)} for i in range(1, 6)])
    store = store_of(tmp_path)
    curve = store.curve("a", whole(store))
    assert (curve.x, curve.y, curve.low) == ([10, 20, 30, 40, 50], [1, 2, 3, 4, 5], None)
    assert store.tail_mean("a") == 5 and np.isnan(store.tail_mean("b"))


def test_a_long_run_opens_at_once_and_in_little_memory(tmp_path: Path) -> None:
    """10 000 steps and 100 000 samples.

    Others may be at work on the machine, so the time is that of this process, in the best of three openings.
    """
    folder = long_run(tmp_path / "run", STEPS, SAMPLES)
    first_look, seconds = math.inf, math.inf
    for _ in range(3):
        before, start = psutil.Process().memory_info().rss, time.process_time()
        run = LiveRun(folder, "run")
        run.refresh()
        first = pages.curve_page(run, "overview")
        first_look = min(first_look, time.process_time() - start)
        while not run.complete:
            run.refresh()
        pages.curve_page(run, "stability")
        dropped = pages.sample_page(run, "difference", "dropped", offset=900)
        seconds = min(seconds, time.process_time() - start)
        grown = (psutil.Process().memory_info().rss - before) / 2**20
        held = (run.store.memory + run.samples.memory) / 2**20
        print(
            f"first look {first_look:.2f} s, all {seconds:.2f} s, holds {held:.1f} MiB, grew by {grown:.0f} MiB"
        )
        assert first["sections"] and len(dropped["samples"]) == 60
        assert (len(run.store.steps), len(run.samples), dropped["total"]) == (STEPS, SAMPLES, SAMPLES // 100)
        assert held < MEGABYTES
    assert first_look < SECONDS / 2
    assert seconds < SECONDS
    # The spike is one step of ten thousand, and in the curve.
    curve = run.view().curve("entropy")
    assert len(curve.x) <= POINTS and curve.high is not None and max(curve.high) == 9.0
