"""Runs whose weights are sent by a transfer that learner ranks and rollout workers take part in together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("vllm")

from dina.rl.cluster import roles
from dina.rl.cluster.placement import Plan
from dina.rl.cluster.session import open_session
from dina.rl.loop import Trainer, train
from dina.rl.recipe.cluster import RayConfig
from tests.rl.ray_world import (
    all_metrics,
    assert_alike,
    recipe,
    save_world,
    wait_until,
    workers_below,
)
from tests.rl.transfer_world import ReceivingWorker, TransferringLearner


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    close = open_session(RayConfig(object_store_mb=100), cpus=4)
    yield
    assert wait_until(lambda: not workers_below()), workers_below()
    close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def local(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(world, tmp_path_factory.mktemp("runs") / "local", rl={"runner": "local"}))


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "LearnerWorker", TransferringLearner)
    monkeypatch.setattr(roles, "RolloutWorker", ReceivingWorker)
    monkeypatch.setattr(Plan, "transport", lambda self, config: "nccl")


def test_weights_reach_two_workers_of_which_one_dies_and_is_replaced(
    world: Path, local: Path, tmp_path: Path, transfer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, killed = Trainer._sync, []

    def sync_after_a_death(self: Trainer, version: int, sample: object) -> dict[str, float]:
        if version == 3:
            killed.append(next(pid for pid, title in workers_below().items() if "ReceivingWorker" in title))
            os.kill(killed[0], signal.SIGKILL)
        return sync(self, version, sample)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_sync", sync_after_a_death)
    run = train(recipe(world, tmp_path / "run", ray={"rollout": {"workers": 2, "cpus": 0.5}}))
    assert_alike(run, local, 6)
    lines = all_metrics(run)
    assert killed and [line["faults/rollout_restarts"] for line in lines] == [0, 0, 1, 0, 0, 0]
    assert all(line["probe/max_logp_diff"] < 1e-4 for line in lines)


def test_two_learner_ranks_send_together(world: Path, local: Path, tmp_path: Path, transfer: None) -> None:
    ranks = {"ranks": 2, "zero_stage": 3}
    run = train(recipe(world, tmp_path / "run", learner=ranks, ray={"learner": {"cpus": 0.5}}))
    assert_alike(run, local, 3)
