"""``dina doctor``: what this machine has, what is missing for which feature, and what to do."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import dina
from dina.rl.environment import cpu_name, git_state, memory_gib, usable_cpus
from dina.rl.recipe import RECIPES

DISTRIBUTION = "dina-rl"
FEATURES = {
    "wandb": "metrics on Weights & Biases (run.report_to)",
    "lora": "LoRA in dina sft",
    "deepspeed": "DeepSpeed in dina sft",
    "dev": "make test and make lint",
}
_MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
_MIN_MEMORY_GIB, _MIN_DISK_GIB = 4.0, 2.0

State = Literal["ok", "missing", "warning"]
_STYLES = {"ok": "green", "missing": "red", "warning": "yellow"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``needed`` marks what nothing works without."""

    name: str
    state: State
    found: str
    todo: str = ""
    needed: bool = False


def run_doctor(console: Console | None = None) -> int:
    """Prints the report; returns 1 if something is missing without which nothing works, else 0."""
    console = console or Console()
    parts = {"Machine": list(machine()), "Needed": list(core_packages()), "Features": list(features())}
    for title, findings in parts.items():
        table = Table("", "", "", "what to do", title=title, title_justify="left", title_style="bold")
        for finding in findings:
            style = _STYLES[finding.state]
            table.add_row(
                finding.name, f"[{style}]{finding.state}[/]", escape(finding.found), escape(finding.todo)
            )
        console.print(table)
    broken = [f.name for findings in parts.values() for f in findings if f.needed and f.state == "missing"]
    if broken:
        console.print(f"[red]Missing: {', '.join(broken)}.[/] `make setup` installs the pinned set.")
        return 1
    console.print("[green]Everything that is needed is here.[/] Try: dina quickstart")
    return 0


def machine() -> Iterator[Finding]:
    """Versions, processor, threads, GPUs, memory and disk."""
    git = git_state(Path(dina.__file__).resolve().parent)
    commit = f", commit {git['commit'][:9]}{' with changes' if git['changed'] else ''}" if git else ""
    yield Finding("dina", "ok", f"{dina.__version__}{commit}")
    yield Finding("python", "ok", f"{'.'.join(map(str, sys.version_info[:3]))}")
    cpus, threads = usable_cpus(), torch.get_num_threads()
    yield Finding("processor", "ok", f"{cpu_name()}, {cpus} CPUs, {torch.backends.cpu.get_cpu_capability()}")
    slow = threads > cpus
    todo = f"more threads than CPUs is slow: run.threads={cpus}, or OMP_NUM_THREADS={cpus}" if slow else ""
    yield Finding("threads", "warning" if slow else "ok", f"torch uses {threads}", todo)
    yield _gpus()
    total, free = memory_gib()
    low = free < _MIN_MEMORY_GIB
    todo = (
        f"the quickstart wants {_MIN_MEMORY_GIB:.0f} GiB: close something, or lower optim.micro_batch_size"
        if low
        else ""
    )
    yield Finding("memory", "warning" if low else "ok", f"{free:.1f} of {total:.1f} GiB free", todo)
    space = shutil.disk_usage(Path.cwd()).free / 2**30
    low = space < _MIN_DISK_GIB
    todo = "checkpoints need room: free some, or set run.output_dir" if low else ""
    yield Finding("disk", "warning" if low else "ok", f"{space:.1f} GiB free in this folder", todo)


def _gpus() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", "ok", "none; the CPU is used")
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", "ok", ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in properties))


def core_packages() -> Iterator[Finding]:
    """The packages that ``dina`` requires: there, new enough, and importable."""
    try:
        requirements = _requirements(extra=None)
    except metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, "missing", "not installed", "pip install --no-deps -e .", needed=True)
        return
    for requirement in requirements:
        problem, found = _check(requirement)
        problem = problem or _import_problem(
            _MODULES.get(requirement.name, requirement.name.replace("-", "_"))
        )
        state: State = "missing" if problem else "ok"
        yield Finding(
            requirement.name,
            state,
            problem or found,
            f"pip install '{requirement}'" if problem else "",
            needed=True,
        )


def features() -> Iterator[Finding]:
    """What not everyone needs, and the shipped checkpoint."""
    try:
        for extra, purpose in FEATURES.items():
            checks = [_check(requirement) for requirement in _requirements(extra)]
            problems = [problem for problem, _ in checks if problem]
            if problems:
                yield Finding(
                    purpose, "warning", "; ".join(problems), f"pip install '{DISTRIBUTION}[{extra}]'"
                )
            else:
                yield Finding(purpose, "ok", ", ".join(found for _, found in checks))
    except metadata.PackageNotFoundError:
        pass
    shipped = RECIPES / "scenes" / "checkpoint"
    if (shipped / "config.json").is_file():
        yield Finding("quickstart", "ok", "the shipped checkpoint is there")
    else:
        yield Finding(
            "quickstart", "warning", f"no checkpoint in {shipped}", "dina tokenizer, then dina sft, make one"
        )


def _requirements(extra: str | None) -> list[Requirement]:
    parsed = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    if extra is None:
        return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [
        r
        for r in parsed
        if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""})
    ]


def _check(requirement: Requirement) -> tuple[str, str]:
    """(what is wrong or nothing, name and version)."""
    try:
        version = metadata.version(canonicalize_name(requirement.name))
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed", ""
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, {requirement.specifier} is needed", version
    return "", f"{requirement.name} {version}"


def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"cannot be imported: {type(error).__name__}: {error}"
    return ""
