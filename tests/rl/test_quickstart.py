from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dina.rl import quickstart as module


def test_the_quickstart_trains_compares_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("dev_large", "vqa_dev"):
        lines = (module.PROMPTS / f"{name}.jsonl").read_text().splitlines()
        (prompts / f"{name}.jsonl").write_text("\n".join(lines[:2]))
    monkeypatch.setattr(module, "PROMPTS", prompts)
    out, shown = tmp_path / "run", io.StringIO()
    changes = [
        "run.max_steps=1",
        "algorithm.prompts_per_step=2",
        "algorithm.num_generations=2",
        "run.threads=1",
    ]
    changes += ["rl.runner=local", f"run.output_dir={out}", "filters.entropy_k=null", "optim.warmup_steps=1"]
    report = module.quickstart(changes, Console(file=shown, width=120))
    assert report == out / "report.html" and "Mean of" in report.read_text()
    assert "before" in shown.getvalue() and str(report) in shown.getvalue().replace("\n", "")
    assert (out / "evaluation" / "comparison.json").is_file()
    assert module.free_folder(out) == tmp_path / "run-2"
