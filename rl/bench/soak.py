"""Whether a long run keeps its size: ``python -m dina.rl.bench.soak``.

Runs the quickstart's recipe over Ray as a process of its own, and looks from outside at it and all below it: memory,
open files, processes. After a warm-up none of them may grow. Ends with 1 if one does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from scipy.stats import theilslopes

from dina.rl.metrics import METRICS_FILE

MIB = 2**20
WARM_UP = 0.25  # share of the steps in which caches, pools and allocators may fill up
# Growth from there to the end, as a share.
ALLOWED = {"memory_mib": 0.02, "shared_mib": 0.02, "files": 0.02, "processes": 0.0}


@dataclass
class Look:
    """What a process and all below it hold at one moment.

    Attributes:
        step: steps that the run has finished.
        memory_mib: what each process has for itself. Pages of libraries are left out: other programs that use the
            same ones, on the same machine, would make them look smaller.
        shared_mib: shared memory of the process that has most of it, which is the one with Ray's object store.
        by_name: ``memory_mib`` of the processes of each name.
    """

    step: int
    seconds: float
    memory_mib: float = 0.0
    files: int = 0
    processes: int = 0
    shared_mib: float = 0.0
    by_name: dict[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dina.rl.bench.soak", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/soak"), help="folder of the run and of soak.json"
    )
    options = parser.parse_args(arguments)
    run = options.out / "run"
    command = [sys.executable, "-m", "dina.rl.cli", "train", "scenes/quickstart", "rl.runner=ray"]
    command += [f"run.max_steps={options.steps}", f"run.output_dir={run}", *options.overrides]
    looks: list[Look] = []
    with subprocess.Popen(command) as process:
        start = time.monotonic()
        while process.poll() is None:
            if (step := steps_done(run)) > 0:
                looks.append(look(process.pid, step, time.monotonic() - start))
            time.sleep(options.interval)
    result = {"command": command[1:], "exit_code": process.returncode, **verdict(looks, options.steps)}
    options.out.mkdir(parents=True, exist_ok=True)
    result["looks"] = [asdict(entry) for entry in looks]
    (options.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "looks"}, indent=1))
    return 1 if process.returncode or result["grows"] else 0


def steps_done(run: Path) -> int:
    file = run / METRICS_FILE
    return file.read_text(encoding="utf-8").count("\n") if file.exists() else 0


def look(pid: int, step: int, seconds: float) -> Look:
    """The sums over a process and all below it. One that ends meanwhile is left out."""
    seen = Look(step, round(seconds, 1))
    try:
        family = [(root := psutil.Process(pid)), *root.children(recursive=True)]
    except psutil.Error:
        return seen
    for process in family:
        try:
            with process.oneshot():
                memory = process.memory_full_info().uss / MIB
                files, name = process.num_fds(), name_of(process)
        except psutil.Error:
            continue
        seen.memory_mib += memory
        seen.shared_mib = max(seen.shared_mib, shared_memory(process.pid))
        seen.files += files
        seen.processes += 1
        seen.by_name[name] = seen.by_name.get(name, 0.0) + memory
    return seen


def shared_memory(pid: int) -> float:
    """MiB of shared memory that a process has in use; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssShmem:")) / 1024


def name_of(process: psutil.Process) -> str:
    """What kind of process it is: ``ray::LearnerWorker.learn`` and ``ray::LearnerWorker`` are the same."""
    first = (process.cmdline() or [process.name()])[0]
    return first.split(".")[0] if first.startswith("ray::") else Path(process.name()).name


def verdict(looks: Sequence[Look], steps: int) -> dict[str, Any]:
    """For each quantity its level after the warm-up, its slope per 100 steps, and whether it grows.

    The slope is the median of those between all pairs of looks (Theil and Sen), which single looks do not bend. What
    counts is the growth that it comes to from the warm-up to the end.

    Returns:
        ``quantities`` by name, and in ``grows`` the names of those that do; all of them if there is nothing to judge.
    """
    settled = [entry for entry in looks if entry.step > WARM_UP * steps]
    if len(settled) < 3:
        return {"quantities": {}, "grows": list(ALLOWED), "note": "too few looks after the warm-up to judge"}
    quantities: dict[str, Any] = {}
    at = [entry.step for entry in settled]
    for name, allowed in ALLOWED.items():
        values = [getattr(entry, name) for entry in settled]
        slope = float(theilslopes(values, at).slope) if len(set(at)) > 1 else 0.0
        level = sorted(values)[len(values) // 2]
        growth = slope * (1 - WARM_UP) * steps
        quantities[name] = {
            "level": round(level, 1),
            "slope_per_100_steps": round(100 * slope, 3),
            "growth": round(growth, 2),
            "allowed": round(allowed * level, 2),
            "grows": growth > allowed * level + 0.5,
        }
    return {"quantities": quantities, "grows": [name for name, found in quantities.items() if found["grows"]]}


if __name__ == "__main__":
    sys.exit(main())
