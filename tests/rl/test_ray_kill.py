"""`dina train` over Ray as a process of its own: stopped by Ctrl-C, killed, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

pytest.importorskip("ray")

from dina.rl.loop import train
from tests.rl.ray_world import gone, metrics_of, recipe, save_world, wait_until

ROOT = Path(__file__).parents[2]


def begin(arguments: list[str]) -> subprocess.Popen[bytes]:
    """`dina train` in a process group of its own, as a shell would start it."""
    command = [sys.executable, "-m", "dina.rl.cli", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def steps_done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def family(process: subprocess.Popen[bytes]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.xfail(
    strict=False,
    reason="after SIGKILL of the driver, some of Ray's processes outlive it by more than a minute",
)
def test_ctrl_c_and_sigkill_leave_no_process_and_a_run_that_goes_on_alike(tmp_path: Path) -> None:
    world = save_world(tmp_path)
    straight = train(recipe(world, tmp_path / "straight", rl={"runner": "local"}))
    run = tmp_path / "run"
    config = recipe(world, run, run={"save_steps": 2}, rewards=[{"use": "tests.rl.rewards:red"}])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))

    stopped = begin([str(tmp_path / "recipe.yaml")])
    assert wait_until(lambda: steps_done(run) >= 1, 240)
    children = family(stopped)
    os.killpg(stopped.pid, signal.SIGINT)  # a terminal sends it to the whole group
    said = stopped.communicate(timeout=120)[0].decode()
    assert stopped.returncode == 130, said
    assert f"go on with --resume {run}" in said
    assert wait_until(lambda: gone(children))
    done = steps_done(run)
    assert (run / "checkpoints" / f"step_{done}" / "manifest.json").is_file()

    killed = begin(["--resume", str(run)])
    assert wait_until(lambda: steps_done(run) > max(done, 3), 240)
    children = family(killed)
    killed.kill()
    killed.wait()
    # Two helpers of Ray first tell a server that is gone, for a minute.
    assert wait_until(lambda: gone(children), 150), [p for p in children if psutil.pid_exists(p)]

    train(recipe(world, run, run={"save_steps": 2}, rl={"runner": "local"}), resume=run)
    assert metrics_of(run) == metrics_of(straight)
