"""``dina doctor``: what this machine has, what is missing for which feature, and what to do; or what ails a run."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections import Counter
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
from rich.text import Text

import dina
from dina.eval.alerts import configured
from dina.eval.diagnosis import TITLES, Diagnosis, diagnose
from dina.eval.sample_log import SampleRecord
from dina.eval.tables import number
from dina.rl.environment import cpu_name, git_state, memory_gib, usable_cpus
from dina.rl.recipe.load import RECIPES
from dina.rl.runtime import missing_package
from dina.rollout.vllm_compat import SUPPORTED, vllm_version

DISTRIBUTION = "dina-rl"
FEATURES = {
    "dashboard": "dina dashboard",
    "wandb": "metrics on Weights & Biases (run.report_to)",
    "lora": "LoRA in dina sft",
    "deepspeed": "DeepSpeed in dina sft",
    "dev": "make test and make lint",
}
_MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
_NOTABLE = 0.01
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


def examine_run(folder: Path, console: Console | None = None) -> int:
    """Prints what went wrong with a run, what to try, and the rules; returns 1 if it is sick, else 0.

    Raises:
        DinaError: the folder is no run's.
    """
    console = console or Console()
    found = diagnose(folder)
    _print_causes(found, console)
    for record in found.samples:
        console.print(Text(f"  sample of step {record.step}: {_sample_text(record)}"))
    console.print(_rule_table(found))
    console.print(Text(f"Look closer: dina dashboard {folder}"))
    return 0 if found.healthy else 1


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


def _print_causes(found: Diagnosis, console: Console) -> None:
    steps = int(found.run.metrics[-1]["step"]) if found.run.metrics else 0
    if (outcome := found.outcome) is not None and outcome.state == "failed":
        console.print(Text(f"The run failed after step {outcome.step}: {outcome.error}", style="red"))
    if not found.findings:
        text = f"No rule fired in {steps} steps." if steps else "The run has logged no step."
        console.print(Text(text, style="green" if found.healthy and steps else "yellow"))
    for place, finding in enumerate(found.findings, start=1):
        console.print(Text(f"{place}. {finding.title}", style="bold red"))
        for line in finding.evidence:
            console.print(Text(f"   • {line}"))
        for cause in finding.follows:
            console.print(Text(f"   → from this follows: {TITLES[cause].lower()}"))
        for line in finding.advice:
            console.print(Text(f"   try: {line}", style="green"))


def _sample_text(record: SampleRecord) -> str:
    text = f"{record.prompt!r}: {record.reason or 'no reward'}"
    worst = record.worst
    if (
        worst is None
        or worst.p_sampler is None
        or worst.p_actor is None
        or (worst.difference or 0) < _NOTABLE
    ):
        return text
    place = (
        f"token {worst.token!r}"
        if worst.row is None
        else f"row {worst.row + 1}, column {(worst.column or 0) + 1}"
    )
    return (
        f"{text}; worst action {worst.channel} at {place}: p_sampler {number(worst.p_sampler)}, p_actor "
        f"{number(worst.p_actor)}"
    )


def _rule_table(found: Diagnosis) -> Table:
    """Every rule, its limit in this run, and what it found."""
    table = Table(
        "rule",
        "fires on",
        "",
        title="Rules (alerts: in the recipe)",
        title_justify="left",
        title_style="bold",
    )
    fired = Counter(alert.rule.name for alert in found.watch.alerts)
    for rule in configured(found.run.config.get("alerts")):
        state, style = (f"fired {fired[rule.name]}×", "red") if fired[rule.name] else ("–", "green")
        if rule.off:
            state, style = "off", "yellow"
        table.add_row(rule.name, escape(rule.condition()), f"[{style}]{state}[/]")
    return table


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
    yield _runner()
    shipped = RECIPES / "scenes" / "checkpoint"
    if (shipped / "config.json").is_file():
        yield Finding("quickstart", "ok", "the shipped checkpoint is there")
    else:
        yield Finding(
            "quickstart", "warning", f"no checkpoint in {shipped}", "dina tokenizer, then dina sft, make one"
        )


def _runner() -> Finding:
    name = "dina train over Ray with vLLM"
    if problem := missing_package():
        todo = f"pip install '{DISTRIBUTION}[ray]', and {SUPPORTED}; without, training runs in one process"
        return Finding(name, "warning", problem, todo)
    return Finding(name, "ok", f"vLLM {vllm_version()}")


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
