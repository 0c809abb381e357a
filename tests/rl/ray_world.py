"""A run small enough for tests with Ray: recipe, rewards that hurt, and a look at processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dina.rl.recipe.config import TrainConfig
from dina.rl.saved_rollouts import load_rollouts
from dina.rollout.protocol import Sample
from tests.rl.rewards import red
from tests.tiny_checkpoint import save_tiny_checkpoint

ROOT = Path(__file__).parents[2]
# Wall-clock time, and the restarts themselves, differ between runs that are alike.
NOT_COMPARED = ("timing_s/", "step_time", "/seconds", "/queue_time", "faults/", "probe/")


# Redone requests and other numbers of workers change what is computed in one batch, and with it the order in
# which float32 sums are taken: log-probabilities move by some 1e-6, and Adam's first steps amplify that.
TOLERANCE = 1e-3


def save_world(folder: Path) -> Path:
    """A checkpoint and prompts to train it on."""
    save_tiny_checkpoint(folder / "checkpoint")
    rows = [{"id": str(i), "prompt": f"a red star {i}", "grid": [2, 3], "tag": "t"} for i in range(7)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(world: Path, out: Path, **changes: Any) -> TrainConfig:
    """Six steps of 3 prompts × 4 samples over Ray with the torch engine, every rollout kept."""
    fields: dict[str, Any] = {
        "run": {
            "output_dir": str(out),
            "max_steps": 6,
            "save_steps": 3,
            "sample_steps": 0,
            "save_rollouts": 1,
            "threads": 1,
        },
        "model": {"path": str(world / "checkpoint")},
        "data": {"train": str(world / "train.jsonl")},
        "algorithm": {"num_generations": 4, "prompts_per_step": 3, "minibatches": 2},
        "filters": {"mismatch_tau": 0.1},
        "optim": {"learning_rate": 1e-2, "micro_batch_size": 4},
        "rewards": [{"use": "tests.rl.rewards:red"}],
        "rollout": {"engine": "torch"},
        "rl": {"runner": "ray"},
        "ray": {"object_store_mb": 100},
    }
    for key, value in changes.items():
        fields[key] = {**fields.get(key, {}), **value} if isinstance(value, dict) else value
    return TrainConfig.model_validate(fields)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(t in k for t in NOT_COMPARED)} for line in lines]


def rollouts(run: Path) -> list[list[Sample]]:
    """The samples of every step."""
    return [load_rollouts(folder) for folder in sorted((run / "rollouts").glob("step_*"))]


def assert_alike(run: Path, other: Path, steps: int) -> None:
    """The same samples, scores and metrics in the first ``steps``, as far as float32 sums in another order allow."""
    for step, (ours, theirs) in enumerate(
        zip(rollouts(run)[:steps], rollouts(other)[:steps], strict=True), 1
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.request.seed, a.prompt.id, a.weight_version) == (
                b.request.seed,
                b.prompt.id,
                b.weight_version,
            )
            assert torch.equal(a.stream.codes, b.stream.codes), step
            torch.testing.assert_close(a.logps, b.logps, atol=TOLERANCE, rtol=0)
    for step in range(steps):
        ours_, theirs_ = (above_float_error(metrics_of(folder)[step]) for folder in (run, other))
        assert ours_.keys() == theirs_.keys()
        apart = {
            name: (value, theirs_[name])
            for name, value in ours_.items()
            if value != pytest.approx(theirs_[name], abs=TOLERANCE, rel=TOLERANCE)
        }
        assert not apart, f"step {step + 1}: {apart}"


def above_float_error(metrics: dict[str, float]) -> dict[str, float]:
    """Without the bins of mismatch below ``TOLERANCE``: float error decides in which of them a sequence falls."""
    bins = "mismatch/hist/"
    return {
        name: value
        for name, value in metrics.items()
        if not (name.startswith(bins) and float(name.removeprefix(bins)) < TOLERANCE)
    }


def all_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def workers_below(pid: int | None = None) -> dict[int, str]:
    """Processes of the roles below ``pid`` (this process by default), by process id."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            title = process.name() + " " + " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "Worker" in title and "ray::" in title:
            found[process.pid] = title
    return found


def kill_a_rollout_worker(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kills one (SIGKILL) when the first sample of step 2 arrives. Returns where its process id will stand."""
    from dina.rl.cluster.rollout_pool import RolloutPool  # needs Ray, other worlds do not

    start = RolloutPool.start
    killed: list[int] = []

    def start_and_kill(self: Any, requests: Sequence[Any], sampling: Any, deliver: Any) -> Any:
        def deliver_and_kill(position: int, sample: Sample) -> None:
            if sample.weight_version == 1 and not killed:
                killed.append(next(p for p, title in workers_below().items() if "RolloutWorker" in title))
                os.kill(killed[0], signal.SIGKILL)
            deliver(position, sample)

        return start(self, requests, sampling, deliver_and_kill)

    monkeypatch.setattr(RolloutPool, "start", start_and_kill)
    return killed


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids)


def listening(pids: list[int]) -> set[str]:
    """The addresses that processes accept connections on."""
    found = set()
    for process in map(psutil.Process, filter(psutil.pid_exists, pids)):
        connections = process.net_connections("inet")
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def begin(arguments: list[str]) -> subprocess.Popen[bytes]:
    """`dina train` in a process group of its own, as a shell would start it.

    Its environment is as small as a service manager's, which some of Ray's processes overwrite with their titles.
    """
    command = [sys.executable, "-m", "dina.rl.cli", "train", *arguments]
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "RAY_TMPDIR")
    }
    environment = kept | {"OMP_NUM_THREADS": "1"}
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


class DiesOnce:
    """The reward ``red``, whose process is killed in the first call of step ``step``, and never again."""

    def __init__(self, mark: str, step: int = 2) -> None:
        self.mark, self.step = Path(mark), step

    def __call__(self, generated_images: list[Any], trainer_state: Any, **columns: Any) -> list[float]:
        if trainer_state.global_step == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return red(generated_images)


class WaitsFor:
    """The reward ``red``, which from step ``step`` on waits until the file ``mark`` is there."""

    def __init__(self, mark: str, step: int) -> None:
        self.mark, self.step = Path(mark), step

    def __call__(self, generated_images: list[Any], trainer_state: Any, **columns: Any) -> list[float]:
        while trainer_state.global_step >= self.step and not self.mark.exists():
            time.sleep(0.1)
        return red(generated_images)


def deadly(prompts: list[str], **columns: Any) -> list[float]:
    """Kills its process whenever it is called."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def owner(prompts: list[str], **columns: Any) -> list[float]:
    """1 in a worker of its own, 0 elsewhere."""
    return [float(os.environ.get("DINA_TEST_OWNER") == "owner")] * len(prompts)


class HangsOn:
    """The reward ``red``, which does not come back from one prompt."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def __call__(self, generated_images: list[Any], id: list[str], **columns: Any) -> list[float]:
        if self.prompt in id:
            time.sleep(600)
        return red(generated_images)
