"""Training over Ray with vLLM drawing: a killed driver and the run that goes on from it, and a killed worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("ray")
pytest.importorskip("vllm")

from dina.model.checkpoint import save_checkpoint
from dina.rl.loop import train
from dina.rl.recipe.config import TrainConfig
from tests.rl.ray_world import (
    LOOPBACK,
    all_metrics,
    assert_alike,
    begin,
    family,
    gone,
    kill_a_rollout_worker,
    listening,
    metrics_of,
    recipe,
    save_world,
    steps_done,
    wait_until,
    workers_below,
)
from tests.rollout.world import world_checkpoint


def vllm_recipe(world: Path, out: Path, mark: Path, **changes: Any) -> TrainConfig:
    """Six steps; the fifth waits for the file ``mark``."""
    return recipe(
        world,
        out,
        rollout={"engine": "vllm", "kv_cache_gib": 0.1},
        optim={"learning_rate": 1e-3},
        rewards=[{"use": "tests.rl.ray_world:WaitsFor", "kwargs": {"mark": str(mark), "step": 5}}],
        **changes,
    )


@pytest.mark.timeout(1800)  # a minute or two on an idle machine: it starts Ray three times, and six engines
def test_six_steps_are_three_a_killed_driver_and_three_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, mark, run = save_world(tmp_path), tmp_path / "go on", tmp_path / "run"
    save_checkpoint(world_checkpoint(), world / "checkpoint")
    config = vllm_recipe(world, run, mark)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    killed = begin([str(tmp_path / "recipe.yaml")])
    assert wait_until(lambda: steps_done(run) == 4, 600)
    children = family(killed)
    titles = " ".join(workers_below(killed.pid).values())
    assert all(f"ray::{role}Worker" in titles for role in ("Rollout", "Reward", "Learner"))
    assert listening(children) <= LOOPBACK
    killed.kill()
    killed.wait()
    assert wait_until(lambda: gone(children), 60), [
        psutil.Process(p) for p in children if psutil.pid_exists(p)
    ]

    mark.touch()
    train(vllm_recipe(world, run, mark), resume=run)
    straight = train(vllm_recipe(world, tmp_path / "straight", mark))
    # vLLM is given the same requests in the same order and the same weights, so not even float error differs.
    assert metrics_of(run) == metrics_of(straight)
    assert [line["step"] for line in all_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert all(line["probe/max_logp_diff"] < 1e-3 for line in all_metrics(run))

    victims = kill_a_rollout_worker(monkeypatch)
    two = vllm_recipe(world, tmp_path / "two", mark, run={"max_steps": 2}, ray={"rollout": {"workers": 2}})
    assert_alike(train(two), straight, 2)
    restarts = [line["faults/rollout_restarts"] for line in all_metrics(tmp_path / "two")]
    assert victims and restarts == [0, 1]
