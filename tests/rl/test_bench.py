from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dina.errors import DinaError
from dina.rl.bench import __main__ as program
from dina.rl.bench.learner import measure_learner
from dina.rl.bench.options import Options
from dina.rl.bench.overhead import PHASES, summary


def test_trl_and_the_learner_make_the_same_update(tmp_path: Path) -> None:
    (row,) = measure_learner(Options(tmp_path, quick=True))
    # TRL's model could also say what the layout alone may set, so that its softmax is over a few classes more.
    assert row["grad_norm"] == pytest.approx(row["trl_grad_norm"], rel=0.01)
    assert row["ratio"] == pytest.approx(row["dina"] / row["trl"], rel=0.01) and row["actions"] > 0


def test_overhead_is_what_no_phase_accounts_for(tmp_path: Path) -> None:
    config = Options(tmp_path).recipe("run", "rl.runner=local")
    seconds = {"generate": 2.0, "score": 0.5, "compare": 1.0, "update": 4.0, "sync": 0.1, "learn": 6.0}
    step = {f"timing_s/{name}": value for name, value in seconds.items()}
    row = summary(config, [{**step, "wall": 8.0}, {**step, "wall": 7.6}, {**step, "wall": 9.5}])
    assert (row["runner"], row["engine"], row["step"]) == ("local", "torch", 8.0)
    assert row["overhead"] == pytest.approx(1 - 7.6 / 8.0, abs=1e-4)
    assert [row[name] for name in PHASES] == [2.0, 0.5, 1.0, 4.0, 0.1]


def test_parts_are_written_as_they_are_done_and_a_failed_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "engine": "vllm",
        "megabytes": 508.1,
        "put": 0.21,
        "load": 0.4,
        "sync_gb_s": 0.83,
        "copy_gb_s": 2.5,
    }

    def run_part(name: str, *options: Any) -> list[dict[str, Any]]:
        if name == "learner":
            raise DinaError("TRL is not installed")
        return [{**row, "ratio": 0.332}]

    monkeypatch.setattr(program, "run_part", run_part)
    assert program.main(["--only", "learner", "sync", "--quick", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "learner: TRL is not installed" in said.err
    line = "| vllm | 508 | 0.21 | 0.4 | 0.83 | 2.5 | 0.332 |"
    assert line in said.out and line in (tmp_path / "bench.md").read_text()
    result = json.loads((tmp_path / "bench.json").read_text())
    assert list(result["parts"]) == ["sync"] and result["quick"] is True
    assert program.main(["--only", "sync", "--out", str(tmp_path)]) == 0
