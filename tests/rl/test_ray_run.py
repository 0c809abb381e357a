"""Runs over Ray, undisturbed and disturbed. One Ray serves all tests of this module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("ray")

import ray
from ray.util.placement_group import remove_placement_group

from dina.errors import DinaError
from dina.eval.metric_table import undescribed
from dina.rl.bench import scaling
from dina.rl.bench.options import Options
from dina.rl.bench.sync import measure_sync
from dina.rl.cluster.placement import Plan, Slot, placed, reserve
from dina.rl.cluster.pool import Limits
from dina.rl.cluster.reactor import Reactor
from dina.rl.cluster.reward_pool import RewardPool, RewardWorker
from dina.rl.cluster.rollout_pool import RolloutPool, RolloutWorker
from dina.rl.cluster.session import open_session
from dina.rl.environment import usable_cpus
from dina.rl.loop import Trainer, train
from dina.rl.recipe.cluster import RayConfig
from dina.rl.recipe.config import TrainConfig
from dina.rl.roles import reward_suite, rollout_sampling
from tests.rl.ray_world import (
    LOOPBACK,
    all_metrics,
    assert_alike,
    gone,
    kill_a_rollout_worker,
    listening,
    metrics_of,
    recipe,
    rollouts,
    save_world,
    wait_until,
    workers_below,
)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    # Other tests of this process may have left helpers of their own, such as a resource tracker.
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    close = open_session(RayConfig(object_store_mb=100), cpus=4)
    yield
    assert wait_until(lambda: not workers_below()), workers_below()
    close()
    assert wait_until(
        lambda: gone([p.pid for p in psutil.Process().children(recursive=True) if p.pid not in before])
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def local(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "local"
    return train(recipe(world, out, rl={"runner": "local"}))


def test_everything_listens_on_loopback_alone() -> None:
    found = listening([os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))])
    assert found and found <= LOOPBACK


class CountsThreads:
    def count(self) -> int:
        return torch.get_num_threads()


def test_a_process_has_the_threads_of_its_slot() -> None:
    group = reserve(Plan(bundles=[{"CPU": 1.0}]), 60.0)
    actors = [placed(CountsThreads, group, Slot(0, 0.5, 0.0, threads))() for threads in (1, 2)]
    assert ray.get([actor.count.remote() for actor in actors]) == [1, min(2, usable_cpus())]
    for actor in actors:
        ray.kill(actor)
    remove_placement_group(group)


JOIN = """
import sys
import ray
from dina.rl.cluster.session import open_session
from dina.rl.recipe.cluster import RayConfig

close = open_session(RayConfig(address=sys.argv[1]), cpus=1)
print(ray.get_runtime_context().gcs_address)
close()
"""


def test_a_run_may_join_a_ray_that_is_there_and_leaves_it_alone() -> None:
    address = ray.get_runtime_context().gcs_address
    joined = subprocess.run(
        [sys.executable, "-c", JOIN, address], capture_output=True, text=True, timeout=300
    )
    assert joined.stdout.split() == [address], joined.stderr
    assert ray.get(ray.remote(lambda: os.getpid()).options(num_cpus=0).remote()) != os.getpid()


def test_a_run_over_ray_is_the_local_run(world: Path, local: Path, tmp_path: Path) -> None:
    run = train(recipe(world, tmp_path / "run"))
    # One rollout worker draws the same batches as the local engine, so not even the last bit differs.
    assert metrics_of(run) == metrics_of(local)
    name = Path("checkpoints/step_6/model.safetensors")
    ours, theirs = load_file(run / name), load_file(local / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    lines = all_metrics(run)
    assert all(line["probe/max_logp_diff"] < 1e-4 and line["staleness/max"] == 0 for line in lines)
    assert all(line["faults/rollout_restarts"] == line["faults/reward_restarts"] == 0 for line in lines)
    assert undescribed(name for line in lines for name in line) == []


def test_killed_workers_are_replaced_and_their_work_is_redone(
    world: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rollout workers; one is killed in step 2, with weights of its own to get back; then a reward worker."""
    killed = kill_a_rollout_worker(monkeypatch)
    mark = {"mark": str(tmp_path / "died"), "step": 3}
    config = recipe(
        world,
        tmp_path / "run",
        rewards=[{"use": "tests.rl.ray_world:DiesOnce", "name": "red", "kwargs": mark}],
        rollout={"batch_size": 2},
        ray={"rollout": {"workers": 2, "cpus": 0.5}},
    )
    run = train(config)
    assert_alike(run, local, 6)
    lines = all_metrics(run)
    assert killed and (tmp_path / "died").exists()
    assert [line["faults/rollout_restarts"] for line in lines] == [0, 1, 0, 0, 0, 0]
    assert [line["faults/reward_restarts"] for line in lines] == [0, 0, 1, 0, 0, 0]


def start_reward_worker(**environment: str) -> Any:
    options = {"num_cpus": 0.5, "runtime_env": {"env_vars": environment}}
    return ray.remote(RewardWorker).options(**options).remote()


@contextmanager
def reward_worker(config: TrainConfig, own: Sequence[str] = ()) -> Iterator[RewardPool]:
    """One reward worker that may be lost once, and one more for each reward in ``own``."""
    alone = {label: [partial(start_reward_worker, DINA_TEST_OWNER=label)] for label in own}
    limits = Limits(1, 600.0, "Go on with --resume")
    pool = RewardPool(config, [start_reward_worker], Reactor(), limits, alone)
    try:
        yield pool
    finally:
        pool.close()


def test_rewards_with_workers_of_their_own_are_summed_with_the_others(
    world: Path, local: Path, tmp_path: Path
) -> None:
    rewards = [
        {"use": "tests.rl.rewards:red"},
        {"use": "tests.rl.ray_world:owner", "weight": 0.5, "workers": 1},
        {"use": "tests.rl.rewards:sometimes", "weight": 2.0, "normalise": "group", "workers": 1},
    ]
    config = recipe(world, tmp_path / "run", rewards=rewards)
    groups = [rollouts(local)[0][:4], rollouts(local)[0][4:8]]
    with reward_worker(config, own=["owner", "sometimes"]) as scorer:
        for group in groups:
            scorer.submit(1, group)
        found = scorer.collect(1)
    here = reward_suite(config, ["red", "sometimes"])
    alone = [here.measure(group) for group in groups]
    here.close()
    assert found.per_reward["owner"] == [1.0] * 8  # set in the environment of its worker alone
    for name in ("red", "sometimes"):
        assert found.per_reward[name] == [score for part in alone for score in part.per_reward[name]]
    assert [score is None for score in found.total] == [s is None for s in found.per_reward["sometimes"]]
    assert (
        set(found.queue_time) == {"red", "owner", "sometimes"}
        and found.metrics()["rewards/red/queue_time"] >= 0
    )


def test_a_worker_whose_reward_hangs_is_replaced_and_the_sample_fails(
    world: Path, local: Path, tmp_path: Path
) -> None:
    drawn = rollouts(local)[0]
    kwargs = {"prompt": drawn[0].prompt.id}
    hanging = {"use": "tests.rl.ray_world:HangsOn", "name": "red", "timeout": 1.0, "kwargs": kwargs}
    config = recipe(world, tmp_path / "run", rewards=[hanging])
    with reward_worker(config) as scorer:
        for group in (drawn[:4], drawn[4:8]):
            scorer.submit(1, group)
        found = scorer.collect(1)
        assert [failure.sample_index for failure in found.failures] == [0, 1, 2, 3]
        assert found.total[:4] == [None] * 4 and None not in found.total[4:]
        assert scorer.faults() == {"faults/reward_restarts": 1.0}


def test_a_worker_that_dies_every_time_stops_the_run(world: Path, local: Path, tmp_path: Path) -> None:
    config = recipe(world, tmp_path / "run", rewards=[{"use": "tests.rl.ray_world:deadly"}])
    with reward_worker(config) as scorer:
        scorer.submit(1, rollouts(local)[0][:4])
        with pytest.raises(
            DinaError, match=r"reward worker 0 failed 2 times in a row .*ray.max_failures=1.*--resume"
        ):
            scorer.collect(1)
        assert scorer.faults() == {"faults/reward_restarts": 2.0}


def test_an_error_that_no_other_worker_would_mend_is_told_as_it_is(
    world: Path, local: Path, tmp_path: Path
) -> None:
    config = recipe(world, tmp_path / "run", rewards=[{"use": "tests.rl.rewards:broken", "required": True}])
    with reward_worker(config) as scorer:
        scorer.submit(1, rollouts(local)[0][:4])
        with pytest.raises(DinaError, match="the scorer is gone") as caught:
            scorer.collect(1)
    assert type(caught.value) is DinaError


def test_a_dead_learner_ends_the_run_with_the_way_on(
    world: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def kill_in_step_5(self: Trainer, number: int) -> dict[str, float]:
        if number == 5:
            (pid,) = [p for p, title in workers_below().items() if "LearnerWorker" in title]
            os.kill(pid, signal.SIGKILL)
        return step(self, number)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", kill_in_step_5)
        with pytest.raises(DinaError, match=f"learner rank 0 died.*dina train --resume {run}"):
            train(recipe(world, run))
    assert len(metrics_of(run)) == 4
    # The same run goes on in one process as well.
    train(recipe(world, run, rl={"runner": "local"}), resume=run)
    assert metrics_of(run) == metrics_of(local)


def test_async_runs_ahead_as_far_as_promised_and_resumes_exactly(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = {"runner": "ray", "mode": "async", "max_staleness": 1}
    whole = train(recipe(world, tmp_path / "whole", rl=ahead))
    assert [line["staleness/max"] for line in all_metrics(whole)] == [0, 1, 1, 1, 1, 1]
    assert [{s.weight_version for s in batch} for batch in rollouts(whole)] == [{0}, {0}, {1}, {2}, {3}, {4}]

    step = Trainer.step

    def interrupted(self: Trainer, number: int) -> dict[str, float]:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
            train(recipe(world, run, rl=ahead))
    assert (run / "checkpoints" / "step_4" / "in_flight" / "5").is_dir()
    train(recipe(world, run, rl=ahead), resume=run)
    assert metrics_of(run) == metrics_of(whole)


def test_a_silent_worker_is_replaced(world: Path, local: Path, tmp_path: Path) -> None:
    """A stopped process says nothing and does not die; only a time-out finds it."""
    limits = Limits(1, 600.0)
    started: list[int] = []

    def start() -> Any:
        if started:  # the replacement may take its time
            limits.timeout = 600.0
        started.append(1)
        return ray.remote(RolloutWorker).options(num_cpus=0.5).remote()

    config = recipe(world, tmp_path / "run")
    drawn = rollouts(local)[0]
    pool = RolloutPool(config, [start], Reactor(), limits)
    try:
        pool.check_lengths([drawn[0].prompt], rollout_sampling(config.rollout))
        (pid,) = [p for p, title in workers_below().items() if "RolloutWorker" in title]
        os.kill(pid, signal.SIGSTOP)
        limits.timeout = 2.0
        again = pool.generate([s.request for s in drawn], rollout_sampling(config.rollout))
        codes = {(s.request.group, s.request.index): s.stream.codes for s in again}
        assert all(torch.equal(codes[s.request.group, s.request.index], s.stream.codes) for s in drawn)
        assert pool.faults() == {"faults/rollout_restarts": 1.0}
    finally:
        pool.close()
    assert wait_until(lambda: gone([pid]))


def test_the_benchmark_times_weights_and_workers(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "SCORERS", 1)
    overrides = ("rollout.engine=torch", f"data.train={world / 'train.jsonl'}", "data.tags=null")
    options = Options(tmp_path, quick=True, overrides=overrides, checkpoint=world / "checkpoint")
    (row,) = measure_sync(options)
    assert 0 < row["sync_gb_s"] < row["copy_gb_s"]
    row = scaling.measure(options, workers=1, mode="async")
    assert row["staleness"] == 1 and row["steps_s"] > 0
    assert row["positions_s"] > row["steps_s"] * scaling.PROMPTS * scaling.GENERATIONS
