from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import dina
from dina.errors import DinaError
from dina.rl.cli import app
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import load_recipe
from tests.tiny_checkpoint import save_tiny_checkpoint

EXPLAINED = (
    "quickstart",
    "train",
    "sft",
    "tokenizer",
    "generate",
    "evaluate",
    "compare",
    "dashboard",
    "doctor",
)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``dina ARGUMENTS``."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate("ab"):
        file = save_tiny_checkpoint(folder / name, seed) / "config.json"
        config = json.loads(file.read_text())
        config["text_config"]["max_position_embeddings"] = (
            256  # room for a question, its picture and an answer
        )
        file.write_text(json.dumps(config))
    rows = [
        {
            "id": f"c{i}",
            "tag": "counting",
            "prompt": "two red stars",
            "grid": [2, 3],
            "include": [{"class": "star"}],
        }
        for i in range(3)
    ]
    scene = {
        "size": [64, 64],
        "objects": [{"shape": "star", "color": "red", "size": "small", "at": [32, 32]}],
    }
    rows.append(
        {"id": "q", "task": "vqa", "tag": "vqa", "prompt": "how many?", "answer": "one", "scene": scene}
    )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        "run: {output_dir: RUN, max_steps: 2, sample_steps: 1, threads: 1}\n"
        "model: {path: ./a}\n"
        "data: {train: ./prompts.jsonl, tags: [counting]}\n"
        "algorithm: {num_generations: 2, prompts_per_step: 2}\n"
        "rl: {runner: local}\n"
        "rewards: [{use: 'tests.rl.rewards:red'}]\n".replace("RUN", str(folder / "run"))
    )
    return folder


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = [sys.executable, "-m", "dina.rl.cli", "--help"]
    out = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    for command in (*EXPLAINED, "rewards", "doctor"):
        assert f" {command} " in out
    slow = "import sys, dina.rl.cli; assert not {'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", slow], check=True)


def test_every_command_explains_itself_with_an_example() -> None:
    for command in EXPLAINED:
        code, out, error = run(command, "--help")
        assert code == 0, error
        assert f"dina {command}" in out.split("Examples")[1]


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == (0, f"{dina.__version__}\n", "")


def test_a_dry_run_prints_the_recipe_and_its_arithmetic(world: Path) -> None:
    code, out, error = run("train", world / "recipe.yaml", "algorithm.num_generations=6", "--dry-run")
    assert code == 0, error
    assert "2 prompts × 6 generations = 12" in out
    assert "rl.runner=local, rollout.engine=torch: rl.runner is local" in out
    resolved = world / "resolved.yaml"
    resolved.write_text(out.split("What the numbers")[0])
    assert load_recipe(resolved, [], TrainConfig).algorithm.num_generations == 6
    assert not (world / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nothing.yaml"], "There is no recipe 'nothing.yaml'"),
        (["train"], "Name a recipe"),
        (["train", "RECIPE", "optim.lr=1"], "optim.lr: unknown key"),
        (["train", "RECIPE", "model.path=nowhere"], "nowhere"),
        (["train", "RECIPE", "rewards.0.use=ocr", "rewards.0.kwargs={engin: x}", "--dry-run"], "'engine'"),
        (["train", "RECIPE", "data.train=nowhere.jsonl"], "There is no prompt file nowhere.jsonl"),
        (["train", "--resume", "nowhere"], "nowhere belongs to no run"),
        (["sft", "nothing.yaml"], "There is no recipe"),
        (["tokenizer", "nothing.yaml"], "There is no recipe"),
        (["generate", "nowhere", "a star"], "nowhere is not there"),
        (["generate", "A", "a star", "--grid", "8"], "--grid '8' is not of the form"),
        (["generate", "A", "what?", "--image", "no.png"], "no.png cannot be read"),
        (["generate", "A", "a star", "--device", "cuda:7"], "'cuda:7' cannot be used"),
        (["generate", "A", "a star " * 200], "context"),
        (["evaluate", "nowhere", "--prompts", "PROMPTS"], "nowhere is not there"),
        (["evaluate", "A", "--prompts", "nowhere.jsonl"], "There is no prompt file"),
        (["evaluate", "A", "--prompts", "PROMPTS", "--renderer", "dina.nothing:x"], "cannot be imported"),
        (["compare", "A", "nowhere", "--prompts", "PROMPTS"], "nowhere is not there"),
    ],
)
def test_what_cannot_go_on_ends_with_2_and_a_reason(world: Path, arguments: list[str], expected: str) -> None:
    names = {"RECIPE": world / "recipe.yaml", "A": world / "a", "PROMPTS": world / "prompts.jsonl"}
    code, _, error = run(*(names.get(argument, argument) for argument in arguments))
    assert code == 2
    # `dina train` says before what it runs as.
    assert re.search("^Error: ", error, re.MULTILINE)
    assert expected in error
    assert "Traceback" not in error


def test_a_word_that_is_no_command_gets_the_nearest() -> None:
    code, _, error = run("trian")
    assert code == 2
    assert "Did you mean 'train'?" in error


def test_ctrl_c_ends_with_130_and_its_message(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dina.rl.loop

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("stopped after step 1; go on with --resume run")

    monkeypatch.setattr(dina.rl.loop, "train", stop)
    assert run("train", world / "recipe.yaml") == (130, "", "stopped after step 1; go on with --resume run\n")


def test_an_error_may_have_its_own_exit_code(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dina.rl.loop

    class StoppedError(DinaError):
        exit_code = 130

    def stop(*_: Any) -> None:
        raise StoppedError("saved")

    monkeypatch.setattr(dina.rl.loop, "train", stop)
    assert run("train", world / "recipe.yaml") == (130, "", "Error: saved\n")


def test_a_run_is_trained_and_goes_on(world: Path) -> None:
    code, _, error = run("train", world / "recipe.yaml")
    assert code == 0, error
    assert str(world / "run" / "report.html") in error.replace("\n", "")
    code, _, error = run("train", world / "recipe.yaml")
    assert (code, "--resume" in error) == (2, True)
    code, _, error = run("train", "--resume", world / "run", "run.max_steps=3")
    assert code == 0, error
    steps = [json.loads(line)["step"] for line in (world / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_pictures_are_drawn_and_asked_about(world: Path, tmp_path: Path) -> None:
    draw = ("generate", world / "a", "a red star", "--grid", "2x3", "--n", "2", "--seed", "5", "--out")
    code, out, error = run(*draw, tmp_path / "first")
    assert code == 0, error
    paths = [Path(line) for line in out.split()]
    assert paths == [tmp_path / "first" / "0.png", tmp_path / "first" / "1.png"]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape[1] * 2 == first.shape[0] * 3
    assert not np.array_equal(first, second)
    run(*draw, tmp_path / "again")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again" / "1.png")), second)
    code, out, error = run("generate", world / "a", "how many?", "--image", paths[0], "--n", "2")
    assert code == 0, error


def test_a_checkpoint_is_evaluated(world: Path, tmp_path: Path) -> None:
    arguments = (
        "evaluate",
        world / "a",
        "--prompts",
        world / "prompts.jsonl",
        "--out",
        tmp_path,
        "--limit",
        "2",
    )
    code, out, error = run(*arguments, "--json")
    assert code == 0, error
    summary = json.loads(out)
    assert summary["categories"]["counting"]["samples"] == 2
    assert summary["categories"]["vqa"]["samples"] == 1
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "evaluation.json").is_file()
    code, out, error = run(*arguments)
    assert code == 0, error
    assert "GenEval-style (scenes detector)" in out
    assert "report.html" in error


def test_two_checkpoints_are_compared(world: Path, tmp_path: Path) -> None:
    arguments = ("compare", world / "a", world / "b", "--prompts", world / "prompts.jsonl", "--out", tmp_path)
    code, out, error = run(*arguments, "--json", "--n-per-prompt", "2")
    assert code == 0, error
    result = json.loads(out)
    assert result["before"]["samples"] == result["after"]["samples"] == 7
    assert {"before.json", "after.json", "comparison.json", "report.html"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_answers_can_be_sampled(world: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", world / "a", "--prompts", world / "prompts.jsonl", "--out", tmp_path, "--json")
    code, out, error = run(*arguments, "--n-per-prompt", "3", "--answer-temperature", "1")
    assert code == 0, error
    assert json.loads(out)["categories"]["vqa"]["samples"] == 3


def test_the_rewards_are_listed() -> None:
    code, out, error = run("rewards")
    assert code == 0, error
    for name in ("objects", "ocr", "vqa"):
        assert f" {name} " in out
