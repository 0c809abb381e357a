from __future__ import annotations

import io
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from dina.rl import doctor
from dina.rl.doctor import Finding, core_packages, features, machine, run_doctor


def report() -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=250)
    code = run_doctor(console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_all_is_well_where_the_tests_run() -> None:
    code, text = report()
    assert code == 0
    assert f"torch {metadata.version('torch')}" in text
    assert "Everything that is needed is here" in text


def test_a_missing_core_package_fails_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["torch>=2", "no-such-package>=3", "numpy>=999"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires)
    code, text = report()
    assert code == 1
    assert "no-such-package is not installed" in text
    assert "pip install 'no-such-package>=3'" in text
    assert "numpy>=999" in text
    assert "Missing: no-such-package, numpy." in text


def test_a_package_that_breaks_on_import_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=1"])
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    [finding] = core_packages()
    assert finding.state == "missing"
    assert "libGL.so.1" in finding.found


def test_a_missing_extra_is_a_warning_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ['no-such-package>=3; extra == "wandb"'])
    finding = by_name(list(features()))[doctor.FEATURES["wandb"]]
    assert finding.state == "warning"
    assert finding.todo == "pip install 'dina-rl[wandb]'"
    code, text = report()
    assert code == 0
    assert "pip install 'dina-rl[wandb]'" in text


def test_what_training_runs_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dina train over Ray with vLLM"
    monkeypatch.setattr(doctor, "missing_package", lambda: "vLLM is not installed")
    finding = by_name(list(features()))[name]
    assert finding.state == "warning" and "one process" in finding.todo
    monkeypatch.setattr(doctor, "missing_package", lambda: None)
    assert by_name(list(features()))[name].state == "ok"


def test_every_feature_is_an_extra_of_the_package() -> None:
    extras = set(metadata.metadata("dina-rl").get_all("Provides-Extra") or [])
    assert set(doctor.FEATURES) <= extras


def test_too_many_threads_and_little_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 2)
    monkeypatch.setattr(doctor, "memory_gib", lambda: (8.0, 1.5))
    found = by_name(list(machine()))
    assert found["threads"].state == found["memory"].state == "warning"
    assert "run.threads=2" in found["threads"].todo
    assert "1.5 of 8.0 GiB free" in found["memory"].found


def test_core_requirements_leave_out_extras() -> None:
    names = {requirement.name for requirement in doctor._requirements(None)}
    assert {"torch", "trl", "rapidocr"} <= names
    assert not {"wandb", "ruff"} & names
    assert all(isinstance(requirement, Requirement) for requirement in doctor._requirements("dev"))
