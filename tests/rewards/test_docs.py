"""The pages on rewards say what is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dina.rewards.protocol import RewardSpec
from dina.rewards.registry import BUILTIN
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import answer, picture

DOCS = Path(__file__).resolve().parents[2] / "docs"
CATALOGUE, PLUGINS = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("rewards.md", "reward-plugins.md")
)


def test_the_ten_line_reward_works_as_printed(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", PLUGINS, re.DOTALL)[0]
    assert len(code.strip().splitlines()) <= 10
    (tmp_path / "my_reward.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    rewards = RewardSuite([RewardSpec("my_reward:bright")])
    white, black = np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)
    result = rewards.score([picture(white), picture(black), answer("3")])
    rewards.close()
    assert result.total == [pytest.approx(1.0), 0.0, None]
    assert result.metrics()["rewards/bright/contrast"] == 0.0
    assert result.failures == []


def test_serving_needs_only_what_the_page_installs(tmp_path):
    [line] = re.findall(r"^pip install (numpy .*)$", PLUGINS, re.MULTILINE)
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = {re.split(r"[<>=]", entry)[0] for entry in project["dependencies"]} - set(line.split())
    assert {"transformers", "trl", "accelerate"} <= missing
    modules = [
        module
        for module, owners in packages_distributions().items()
        if any(owner.lower().replace("_", "-") in missing for owner in owners)
    ]
    (tmp_path / "my_reward.py").write_text(re.findall(r"```python\n(.*?)```", PLUGINS, re.DOTALL)[0])
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
        "import dina.rewards.server\nfrom dina.rl.cli import main\nmain()"
    )
    score = ["rewards", "score", "./my_reward.py:bright", "--image", "white.png", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *score], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["score"] == 1.0


def test_the_catalogue_names_every_builtin_reward():
    assert set(re.findall(r"^\| `(\w+)` \|", _table(), re.MULTILINE)) == set(BUILTIN)


def _table() -> str:
    """The first table of the catalogue."""
    return CATALOGUE[CATALOGUE.index("| name |") : CATALOGUE.index("Speeds are")]


def test_every_topic_has_one_page():
    headings = [line for page in (CATALOGUE, PLUGINS) for line in page.splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings))
    assert {"## Ten lines", "## Run a server", "## How a failed score is treated"} <= set(headings)
