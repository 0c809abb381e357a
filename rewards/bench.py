"""How long a reward takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dina.rewards.batch import RewardBatch, RewardSample
from dina.rewards.protocol import RewardSpec
from dina.rewards.running import RunningReward
from dina.rollout.protocol import Prompt


def bench_reward(
    spec: RewardSpec,
    n: int,
    repeats: int,
    size: int,
    prompt: str,
    columns: Mapping[str, Any],
    given: Sequence[RewardSample] = (),
) -> dict[str, float]:
    """Seconds for setting up, for the first batch and for later ones, and shares of scores that exist and failed.

    Args:
        n: samples per batch.
        repeats: batches after the first.
        size: side of random pictures, in pixels.
        given: samples to take in turn instead of random pictures with ``prompt`` and ``columns``.

    Raises:
        DinaError: the reward cannot be set up.
    """
    samples = [given[i % len(given)] for i in range(n)] if given else _random(n, size, prompt, columns)
    start = time.perf_counter()
    running = RunningReward(spec)
    setup = time.perf_counter() - start
    try:
        seconds = [_score(running, samples) for _ in range(repeats + 1)]
    finally:
        running.close()
    later = sorted(seconds[1:])
    median = later[len(later) // 2]
    return {
        "set-up, s": setup,
        "first batch, s": seconds[0],
        "later batches, median s": median,
        "samples per second": n / median if median else float("inf"),
        "scored, share": sum(score is not None for score in running.scores) / n,
        "failed, share": len(running.failures) / n,
    }


def _score(running: RunningReward, samples: Sequence[RewardSample]) -> float:
    start = time.perf_counter()
    running.start(RewardBatch(samples))
    running.finish()
    return time.perf_counter() - start


def _random(n: int, size: int, prompt: str, columns: Mapping[str, Any]) -> list[RewardSample]:
    """Pictures of coloured blocks, the same in every run."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    side = -(-size // 8)
    large = blocks.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return [RewardSample(Prompt(str(i), prompt, columns=dict(columns)), large[i]) for i in range(n)]
