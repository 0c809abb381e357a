"""Which runner and engine ``auto`` comes to. vLLM's version is found without importing it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dina.errors import DinaError
from dina.rl import loop, runtime
from dina.rl.recipe.config import TrainConfig
from dina.rl.runtime import settle
from dina.rollout import vllm_compat

Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Lets Ray and vLLM be there in given versions, whatever this machine has."""

    def pretend(vllm: str | None = "0.32.0", ray: bool = True) -> None:
        for module in (vllm_compat, runtime):
            monkeypatch.setattr(module, "vllm_version", lambda: vllm)
        monkeypatch.setattr(runtime, "find_spec", lambda name: object() if ray else None)

    pretend()
    return pretend


def config(**changes: Any) -> TrainConfig:
    fields = {"model": {"path": "c"}, "data": {"train": "p"}, "rewards": [{"use": "objects"}], **changes}
    return TrainConfig.model_validate(fields)


def chosen(**changes: Any) -> tuple[str, str, str]:
    settled = config(**changes)
    sentence = settle(settled)
    runner, engine = settled.rl.runner, settled.rollout.engine
    assert sentence.startswith(f"rl.runner={runner}, rollout.engine={engine}: ")
    assert settle(settled).endswith(": as the recipe says")
    return runner, engine, sentence.partition(": ")[2]


def test_vllm_under_ray_where_both_are_installed(installed: Installed) -> None:
    assert chosen() == ("ray", "vllm", "vLLM 0.32.0 is installed")
    assert chosen(rl={"runner": "ray"})[:2] == ("ray", "vllm")


@pytest.mark.parametrize(
    ("vllm", "ray", "reason"),
    [
        (None, True, "vLLM is not installed"),
        ("0.31.2", True, "vLLM 0.31.2 is installed; supported"),
        ("0.34.0rc1", True, "vLLM 0.34.0rc1 is installed; supported"),
        ("0.32.0", False, "Ray is not installed"),
    ],
)
def test_one_process_where_they_are_not(
    installed: Installed, vllm: str | None, ray: bool, reason: str
) -> None:
    installed(vllm, ray)
    runner, engine, why = chosen()
    assert (runner, engine) == ("local", "torch") and why.startswith(reason)


def test_what_vllm_cannot_draw_is_drawn_by_torch_and_said(installed: Installed) -> None:
    runner, engine, why = chosen(rollout={"guidance_scale": 2.0})
    assert (runner, engine) == ("local", "torch")
    assert why == "guidance_scale=2.0: vLLM draws without classifier-free guidance"
    assert chosen(rollout={"replay": "runs/x/rollouts"})[:2] == ("local", "torch")
    with pytest.raises(ValueError, match="vllm draws without guidance"):
        config(rollout={"guidance_scale": 2.0, "engine": "vllm"})


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"learner": {"ranks": 2}}, "learner.ranks=2"),
        ({"rl": {"mode": "async"}}, "rl.mode=async"),
        ({"ray": {"rollout": {"workers": 2}}}, "ray.rollout.workers=2"),
        ({"ray": {"reward": {"workers": 2}}}, "ray.reward.workers=2"),
        ({"ray": {"address": "auto"}}, "ray.address=auto"),
    ],
)
def test_several_processes_need_ray_without_vllm_too(
    installed: Installed, changes: dict[str, Any], setting: str
) -> None:
    installed(None)
    runner, engine, why = chosen(**changes)
    assert (runner, engine) == ("ray", "torch")
    assert why == f"vLLM is not installed; {setting} needs processes of its own"


def test_what_is_named_stays(installed: Installed) -> None:
    assert chosen(rl={"runner": "local"}) == (
        "local",
        "torch",
        "rl.runner is local, and vLLM draws in processes of its own",
    )
    assert chosen(rollout={"engine": "torch"}) == ("local", "torch", "rollout.engine is torch")
    assert chosen(rl={"runner": "ray"}, rollout={"engine": "torch"})[2] == "as the recipe says"
    installed(None)
    # Its absence is told when the engine starts, so that a recipe can be checked on another machine.
    assert chosen(rollout={"engine": "vllm"})[:2] == ("ray", "vllm")


def test_a_missing_ray_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    with pytest.raises(DinaError, match=r"needs Ray: pip install 'dina-rl\[ray\]'"):
        loop.open_roles(config(rl={"runner": "ray"}), Path("run"))


def test_choosing_imports_neither_ray_nor_vllm() -> None:
    program = "import sys, dina.rl.runtime; assert not {'ray', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
