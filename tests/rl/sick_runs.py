"""Runs of a tiny model that are made sick on purpose, each in one way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dina.model.checkpoint import Checkpoint, save_checkpoint
from dina.rl import local_roles
from dina.rl.loop import train
from dina.rollout.torch_engine import TorchEngine
from tests.rl.ray_world import recipe, save_world
from tests.tiny_checkpoint import tiny_checkpoint


def explosion(folder: Path) -> Path:
    """A policy that is sure of itself, and an entropy bonus that tears it apart."""
    checkpoint = tiny_checkpoint()
    with torch.no_grad():
        for head in checkpoint.model.visual_head.heads:
            head.weight.mul_(60)
    save_world(folder)
    save_checkpoint(checkpoint, folder / "checkpoint")
    return _train(
        folder, 16, algorithm={"entropy_coef": 3.0}, optim={"learning_rate": 5e-3, "warmup_steps": 16}
    )


def collapse(folder: Path) -> Path:
    """Steps so large that one picture is all that is left."""
    save_world(folder)
    return _train(folder, 20, optim={"learning_rate": 0.4, "warmup_steps": 40})


def failing_reward(folder: Path) -> Path:
    save_world(folder)
    return _train(folder, 4, rewards=[{"use": "tests.rl.rewards:sometimes"}])


def stale_weights(folder: Path) -> Path:
    """A sampler that stamps the newest version and goes on with the weights that it began with."""
    save_world(folder)
    with _sampler_that_stays_behind():
        return _train(folder, 6)


def no_signal(folder: Path) -> Path:
    """A reward that gives all samples one score."""
    save_world(folder)
    return _train(folder, 6, rewards=[{"use": "tests.rl.rewards:silence"}])


def healthy(folder: Path) -> Path:
    save_world(folder)
    return _train(folder, 8, optim={"learning_rate": 1e-4})


def _train(folder: Path, steps: int, **changes: Any) -> Path:
    run = {"max_steps": steps, "save_steps": 0, "save_rollouts": 0, "sample_steps": 1}
    settings: dict[str, Any] = {
        "filters": {"mismatch_tau": None},
        "rl": {"runner": "local"},
        "run": run,
        **changes,
    }
    return train(recipe(folder, folder / "run", **settings))


@contextmanager
def _sampler_that_stays_behind() -> Iterator[None]:
    def open_engine(checkpoint: Checkpoint, *arguments: Any) -> TorchEngine:
        return TorchEngine(copy.deepcopy(checkpoint), *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_roles, "TorchEngine", open_engine)
        yield
