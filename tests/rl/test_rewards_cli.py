from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dina.rl.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reward-plugins.md"
FAULTS = "tests.rewards.faults"


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``dina rewards ARGUMENTS``."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["rewards", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def white(tmp_path: Path) -> Path:
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "white.png")
    return tmp_path / "white.png"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The reward that the page shows."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[:1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "my_reward.py").write_text(code)
    return tmp_path / "my_reward.py"


def test_list_and_show_name_what_there_is(mine: Path) -> None:
    for arguments in ([], ["list"]):
        code, out, _ = run(*arguments)
        assert code == 0 and all(f" {name} " in out for name in ("objects", "remote", "vqa"))
    code, out, error = run("show", "remote")
    assert code == 0, error
    assert "needs: prompts, completions" in out and "servers (required)" in out and "backoff=0.25" in out
    code, out, error = run("show", f"{mine}:bright")
    assert "1 for a white picture" in out and "needs: generated_images\nkwargs: none, and any other" in out
    assert run("show", "orc")[0] == 2


def test_score_prints_the_score_and_why(white: Path, mine: Path) -> None:
    code, out, error = run("score", f"{mine}:bright", "--image", white, "--json")
    assert code == 0, error
    assert json.loads(out) == [{"score": 1.0, "parts": {"contrast": 0.0}}]
    code, out, _ = run(
        "score", "vqa", "--text", "three", "--text", "4", "--prompt", "how many?", "--column", "answer=3"
    )
    assert code == 0 and "said 'three', wanted 3" in out


def test_a_failed_score_is_shown_and_ends_with_1(white: Path) -> None:
    code, out, _ = run("score", f"{FAULTS}:raises", "--image", white)
    assert code == 1 and "failed: RuntimeError: no such file: weights.bin" in out


def test_bench_measures(mine: Path) -> None:
    code, out, error = run("bench", f"{mine}:bright", "--n", 5, "--size", 20, "--repeats", 1)
    assert code == 0, error
    assert "samples per second" in out and "failed, share" in out
    code, out, error = run("bench", "vqa", "--text", "3", "--column", "answer=3", "--n", 4, "--repeats", 1)
    assert re.search(r"scored, share\s+│ 1\s", out), out + error
    assert run("bench", f"{FAULTS}:raises", "--n", 2, "--repeats", 1)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["score", "vqa"], "Name what to score"),
        (["score", "vqa", "--image", "nowhere.png"], "nowhere.png cannot be read"),
        (["score", "vqa", "--text", "a", "--column", "answer"], "not of the form KEY=VALUE"),
        (["score", "vqa", "--text", "a", "--column", "answer={"], "not valid YAML"),
        (["score", "vqa", "--text", "a", "--prompt", "x", "--prompt", "y"], "2 prompts for 1 samples"),
        (["score", "ocr", "--text", "a", "--set", "nonsense=1"], "takes no argument 'nonsense'"),
        (["serve", f"{FAULTS}:fine", "--host", "0.0.0.0"], "set DINA_REWARD_TOKEN"),
        (["serve", f"{FAULTS}:fine", f"{FAULTS}:fine"], "two rewards are called 'fine'"),
        (["new", "Not-A-Name"], "cannot name a function"),
    ],
)
def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str) -> None:
    monkeypatch.delenv("DINA_REWARD_TOKEN", raising=False)
    code, _, error = run(*arguments)
    assert code == 2 and expected in error


def test_new_writes_a_package(tmp_path: Path) -> None:
    code, out, error = run("new", "sharp_edges", "--folder", tmp_path / "edges")
    assert code == 0 and len(out.splitlines()) == 3
    assert "sharp_edges_reward.py:sharp_edges" in error


def test_the_page_knows_every_command_and_every_key_of_a_recipe() -> None:
    from dina.rl.recipe.rewards import RewardConfig

    page = PAGE.read_text(encoding="utf-8")
    for command in ("list", "show", "score", "bench", "serve", "new"):
        assert f"dina rewards {command}" in page
    for key in RewardConfig.model_fields:
        assert f"`{key}`" in page
