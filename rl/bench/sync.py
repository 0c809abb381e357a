"""New weights from the learner into a rollout worker, against a plain copy of the same tensors in memory."""

from __future__ import annotations

import statistics
import time
from itertools import count
from pathlib import Path

import torch

from dina.model.sampling import SamplingParams
from dina.rl.bench.options import Options, Row
from dina.rl.cluster.roles import open_ray_roles
from dina.rl.roles import Roles, rollout_sampling
from dina.rollout.bench import save_large, take_turns
from dina.rollout.vllm_start import weight_shapes

LAYERS = 18  # some 500 MB in float32


def measure_sync(options: Options) -> list[Row]:
    """One row: what is sent, the seconds of each half of the way, and the rates in GB/s."""
    torch.set_num_threads(options.threads)
    folder = options.checkpoint
    if not options.quick:
        folder = options.scratch / "large"
        save_large(options.checkpoint, folder, LAYERS)
    config = options.recipe(
        "sync", f"model.path={folder}", "rl.runner=ray", "ray.object_store_mb=2000", "run.max_steps=1"
    )
    roles = open_ray_roles(config, options.scratch / "sync")
    try:
        send = Send(roles, rollout_sampling(config.rollout))
        send()
        send.seconds.clear()
        turns = take_turns({"sync": send, "copy": Copy(folder)}, options.repeats(7))
    finally:
        roles.close()
    size = sum(shape.numel() * 4 for shape in map(torch.Size, weight_shapes(folder).values()))
    wall = {name: statistics.median(turn.wall) for name, turn in turns.items()}
    return [
        {
            "engine": config.rollout.engine,
            "megabytes": round(size / 1e6, 1),
            "put": round(statistics.median(put for put, _ in send.seconds), 4),
            "load": round(statistics.median(load for _, load in send.seconds), 4),
            **{f"{name}_gb_s": round(size / 1e9 / seconds, 3) for name, seconds in wall.items()},
            "ratio": round(wall["copy"] / wall["sync"], 3),
        }
    ]


class Send:
    """Sends the learner's weights to the rollout workers, and waits until they have them."""

    def __init__(self, roles: Roles, sampling: SamplingParams) -> None:
        self.roles, self.sampling = roles, sampling
        self.versions = count(1)
        self.seconds: list[tuple[float, float]] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        weights = self.roles.learner.weights()
        put = time.perf_counter()
        self.roles.rollout.update_weights(weights, next(self.versions))
        # A worker answers in the order of the calls, so the answer to any other says that the weights are there.
        self.roles.rollout.check_lengths([], self.sampling)
        self.seconds.append((put - start, time.perf_counter() - put))


class Copy:
    """A plain copy of tensors of the same shapes."""

    def __init__(self, folder: Path) -> None:
        self.source = [torch.ones(shape) for shape in weight_shapes(folder).values()]
        self.target = [torch.empty_like(tensor) for tensor in self.source]

    def __call__(self) -> None:
        for source, target in zip(self.source, self.target, strict=True):
            target.copy_(source)
