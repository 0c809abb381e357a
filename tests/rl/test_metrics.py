from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dina.errors import DinaError
from dina.rl.environment import git_state, write_environment
from dina.rl.metrics import MetricsLogger, headline, truncate_steps
from dina.rl.recipe.config import TrainConfig


def config(**run: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"model": {"path": "c"}, "data": {"train": "p"}, "rewards": [{"use": "objects"}], "run": run}
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_one_line(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path / "run", config(max_steps=3), console=quiet()) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, {"reward": step / 10, "level_0/entropy": math.nan})
            assert len(lines(tmp_path / "run")) == step
    assert lines(tmp_path / "run")[1] == {"step": 2, "reward": 0.2, "level_0/entropy": None}


def test_resuming_cuts_off_what_will_be_written_again(tmp_path: Path) -> None:
    with MetricsLogger(tmp_path, config(max_steps=9), console=quiet()) as metrics:
        for step in (1, 2, 3, 4):
            metrics.log(step, {"reward": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    with MetricsLogger(tmp_path, config(max_steps=9), finished=2, console=quiet()) as metrics:
        metrics.log(3, {"reward": 30})
    assert [(line["step"], line["reward"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_without_its_end_is_kept_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}')
    truncate_steps(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_console_gets_a_line_every_few_steps(tmp_path: Path) -> None:
    console = quiet()
    with MetricsLogger(tmp_path, config(max_steps=10, logging_steps=4), console=console) as metrics:
        for step in range(1, 11):
            metrics.log(step, {"reward": 0.5, "reward_std": 0.25, "filter/kept": 0.97, "entropy": math.nan})
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue().splitlines()
    assert [line.split("/")[0].split()[-1] for line in printed] == ["4", "8", "10"]
    assert printed[0] == "step  4/10  reward 0.500  ± 0.250  kept 97%"


def test_the_headline_takes_what_is_there() -> None:
    assert headline({}) == ""
    assert headline({"grad_norm": 1.234, "step_time": 2.0, "other": 1}) == "grad 1.23  2.0 s"


def test_a_full_disk_is_an_error_in_words(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("the system has no /dev/full")
    with MetricsLogger(tmp_path, config(), console=quiet()) as metrics:
        metrics._file.close()
        metrics._file = full.open("w")
        with pytest.raises(DinaError, match="cannot be written: No space left"):
            metrics.log(1, {"reward": 1.0})
        metrics._file = (tmp_path / "metrics.jsonl").open("a")


def test_wandb_takes_part_offline_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    ids = []
    for finished in (0, 1):
        with MetricsLogger(tmp_path, config(max_steps=2, report_to=["wandb"]), finished, quiet()) as metrics:
            ids.append(wandb.run.id)
            assert wandb.run.config["algorithm"]["num_generations"] == 8
            metrics.log(finished + 1, {"reward": 0.5, "level_0/entropy": 2.0})
            assert wandb.run.summary["level_0/entropy"] == 2.0
    assert ids[0] == ids[1] == (tmp_path / "wandb_run_id.txt").read_text()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_wandb_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(DinaError, match=r"not installed: pip install"):
        MetricsLogger(tmp_path, config(report_to=["wandb"]), console=quiet())


def test_the_environment_says_what_a_run_ran_on(tmp_path: Path) -> None:
    write_environment(tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"].split(".")[0].isdigit()
    assert environment["threads"] >= 1
    assert environment["memory_gib"] > 0


def test_there_is_no_commit_outside_of_a_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
