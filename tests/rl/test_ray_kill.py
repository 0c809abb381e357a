"""`dina train` over Ray as a process of its own: stopped by Ctrl-C, killed, and resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml

pytest.importorskip("ray")

from dina.rl.cluster.watchdog import MARK, members
from dina.rl.loop import train
from tests.rl.ray_world import begin, family, gone, metrics_of, recipe, save_world, steps_done, wait_until


@pytest.mark.timeout(1800)  # a minute on an idle machine: it starts Ray twice
def test_ctrl_c_and_sigkill_leave_no_process_and_a_run_that_goes_on_alike(tmp_path: Path) -> None:
    world = save_world(tmp_path)
    straight = train(recipe(world, tmp_path / "straight", rl={"runner": "local"}))
    run = tmp_path / "run"
    config = recipe(world, run, run={"save_steps": 2}, rewards=[{"use": "tests.rl.rewards:red"}])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))

    stopped = begin([str(tmp_path / "recipe.yaml")])
    assert wait_until(lambda: steps_done(run) >= 1, 600)
    children = family(stopped)
    os.killpg(stopped.pid, signal.SIGINT)  # a terminal sends it to the whole group
    said = stopped.communicate(timeout=120)[0].decode()
    assert stopped.returncode == 130, said
    assert f"go on with --resume {run}" in said
    assert wait_until(lambda: gone(children))
    done = steps_done(run)
    assert (run / "checkpoints" / f"step_{done}" / "manifest.json").is_file()

    killed = begin(["--resume", str(run)])
    assert wait_until(lambda: steps_done(run) > max(done, 3), 600)
    children = family(killed)
    (folder,) = {p.environ()[MARK] for p in map(psutil.Process, children) if MARK in p.environ()}
    killed.kill()
    killed.wait()
    # A few seconds on an idle machine. By themselves, two helpers of Ray would stay for a minute.
    assert wait_until(lambda: gone(children), 60), [
        psutil.Process(p) for p in children if psutil.pid_exists(p)
    ]
    assert not members(Path(folder), killed.pid) and not Path(folder).exists()

    train(recipe(world, run, run={"save_steps": 2}, rl={"runner": "local"}), resume=run)
    assert metrics_of(run) == metrics_of(straight)
