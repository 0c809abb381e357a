"""Rewards of other people: from a package, from a file, from TRL, from verl."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dina.errors import DinaError
from dina.rewards.protocol import RewardSpec, Score
from dina.rewards.registry import available_rewards, build_reward, load_object
from dina.rewards.scaffold import new_reward
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import answer, picture

HERE = __name__
pytestmark = pytest.mark.timeout(900)

PLUGIN = """\
import numpy as np


class Redness:
    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, generated_images, **columns):
        return [self.gain * np.asarray(image)[..., 0].mean() / 255 for image in generated_images]
"""
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "redness-reward"
version = "0.1"

[project.entry-points."dina.rewards"]
redness = "redness:Redness"

[tool.setuptools]
py-modules = ["redness"]
"""


def score(use: str, samples, **fields):
    suite = RewardSuite([RewardSpec(use if ":" in use else f"{HERE}:{use}", **{"name": "it", **fields})])
    try:
        return suite.score(samples)
    finally:
        suite.close()


def install_redness(folder: Path) -> Path:
    """The plugin, installed by pip into a folder of its own, which comes back."""
    source, target = folder / "source", folder / "site"
    source.mkdir()
    (source / "redness.py").write_text(PLUGIN)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def test_a_package_of_ten_lines_is_installed_by_pip_and_used_by_name(tmp_path, monkeypatch):
    assert len([line for line in PLUGIN.splitlines() if line]) <= 10
    monkeypatch.syspath_prepend(install_redness(tmp_path))
    importlib.invalidate_caches()
    assert available_rewards()["redness"] == "redness:Redness"
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    suite = RewardSuite([RewardSpec("redness", kwargs={"gain": 0.5})])
    assert suite.score([picture(red), picture(0 * red)]).total == [0.5, 0.0]
    suite.close()
    with pytest.raises(DinaError, match="no argument 'gian'; did you mean 'gain'"):
        build_reward(RewardSpec("redness", kwargs={"gian": 1}))


def test_a_file_is_a_plugin_and_imports_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 0.75\n")
    file = tmp_path / "my_reward.py"
    file.write_text(
        "from neighbour_of_mine import VALUE\n\n\ndef flat(prompts):\n    return [VALUE] * len(prompts)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert RewardSpec("./my_reward.py:flat").label == "flat"
    assert score("./my_reward.py:flat", [picture()]).total == [0.75]
    assert load_object("./my_reward.py:flat") is load_object(f"{file}:flat")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("./nowhere.py:flat", "nowhere.py cannot be imported .FileNotFoundError: there is no file"),
        ("./nowhere.py", "which object of the file. Write ./nowhere.py:attr"),
        ("./broken.py:flat", "broken.py cannot be imported .ZeroDivisionError"),
        ("./good.py:falt", "has no 'falt'; did you mean 'flat'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, monkeypatch, use: str, words: str):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "good.py").write_text("def flat(prompts):\n    return [1.0] * len(prompts)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DinaError, match=words):
        build_reward(RewardSpec(use))


class Judge:
    """Everything that a class may have."""

    requires = ("solution",)
    batch_size = 2

    def __init__(self, bonus: float = 0.0):
        self.bonus, self.ready, self.sizes = bonus, False, []

    def setup(self):
        self.ready = True

    def __call__(self, prompts, **columns):
        assert self.ready and all(value is not None for value in columns["solution"])
        self.sizes.append(len(prompts))
        return [Score(self.bonus + len(self.sizes), "because", {"size": len(prompts)}) for _ in prompts]


def test_a_class_has_setup_columns_batches_sub_scores_and_reasons():
    samples = [picture(solution=i) for i in range(3)] + [picture()]
    result = score("Judge", samples, kwargs={"bonus": 0.5})
    assert result.total == [1.5, 1.5, 2.5, None]
    assert result.parts["it"][2] == {"size": 1, "reason": "because"}
    assert result.metrics()["rewards/it/size"] == pytest.approx(5 / 3)
    assert score("Judge", samples, batch_size=3).total == [1.0, 1.0, 1.0, None]


class CannotSetUp(Judge):
    def setup(self):
        raise OSError("no weights")


def test_a_set_up_that_fails_stops_before_anything_is_scored():
    with pytest.raises(DinaError, match="could not be set up: OSError: no weights"):
        RewardSuite([RewardSpec(f"{HERE}:CannotSetUp")])


def entries(mark):
    return [
        {0: {"score": 0.5, "half": 1}, 1: ValueError("unreadable"), 2: {"half": 1}, 3: None}[m] for m in mark
    ]


def test_an_entry_may_be_a_mapping_or_an_exception():
    result = score("entries", [picture(mark=i) for i in range(4)])
    assert result.total == [0.5, None, None, None]
    assert result.parts["it"][0] == {"half": 1}
    reasons = {failure.sample_index: failure.reason for failure in result.failures}
    assert reasons.keys() == {1, 2}
    assert reasons[1] == "ValueError: unreadable" and "without 'score'" in reasons[2]


def raises_in_batch(mark):
    if 3 in mark:
        raise RuntimeError("3")
    return [float(len(mark))] * len(mark)


def test_only_the_batch_that_raised_is_tried_again_one_by_one():
    result = score("raises_in_batch", [picture(mark=i) for i in range(6)], batch_size=2)
    assert result.total == [2.0, 2.0, 1.0, None, 2.0, 2.0]


def sleeps_in_second_batch(mark):
    if 2 in mark:
        time.sleep(4.0)
    CALLS.append(list(mark))
    return [1.0] * len(mark)


CALLS: list[list[int]] = []


def test_batches_before_a_time_out_keep_their_scores_and_later_ones_are_not_begun():
    CALLS.clear()
    result = score("sleeps_in_second_batch", [picture(mark=i) for i in range(6)], batch_size=2, timeout=2.0)
    assert result.total == [1.0, 1.0, None, None, None, None]
    reasons = [failure.reason for failure in result.failures]
    assert reasons == ["timed out after 2 s"] * 2 + ["not scored: the time of the batch was up"] * 2
    time.sleep(3.5)
    assert CALLS == [[0, 1], [2, 3]]


def compute_score(data_source, solution_str, ground_truth, extra_info=None, strict=False):
    if solution_str == "raise":
        raise ValueError("cannot be parsed")
    right = solution_str == ground_truth or (not strict and solution_str.strip() == ground_truth)
    return {"score": float(right), "source": data_source, "level": (extra_info or {}).get("level")}


async def compute_picture_score(data_source, solution_image, ground_truth, extra_info):
    return float(solution_image.shape == (3, 8, 8)) * ground_truth


def test_functions_of_verl_work_unchanged():
    samples = [
        answer("3 ", ground_truth="3", data_source="gsm", extra_info={"level": 2}),
        answer("4", reward_model={"ground_truth": "3", "style": "rule"}),
        answer("raise", ground_truth="3"),
        answer("3"),
        picture(ground_truth="3"),
    ]
    result = score("compute_score", samples)
    assert result.total == [1.0, 0.0, None, None, None]
    assert result.parts["it"][0] == {"source": "gsm", "level": 2}
    [failure] = result.failures
    assert failure.sample_index == 2 and "cannot be parsed" in failure.reason
    assert score("compute_score", samples[:1], kwargs={"strict": True}).total == [0.0]
    with pytest.raises(DinaError, match="did you mean 'strict'"):
        build_reward(RewardSpec(f"{HERE}:compute_score", kwargs={"stict": True}))
    assert score("compute_picture_score", [picture(ground_truth=0.5), answer("x", ground_truth=1)]).total == [
        0.5,
        None,
    ]


def test_trls_functions_work_unchanged():
    samples = [
        answer("<think>\nsum\n</think>\n\\boxed{3}", solution="3"),
        answer("4", solution="3"),
        answer("x"),
    ]
    assert score("trl.rewards:think_format_reward", samples).total == [1.0, 0.0, 0.0]
    fractions = answer(r"\boxed{\frac{2}{4}}", solution="$0.5$")
    assert score("trl.rewards:accuracy_reward", [*samples, fractions]).total == [1.0, 0.0, None, 1.0]
    punishing = {"max_completion_len": 3, "soft_punish_cache": 1}
    assert score("trl.rewards:get_soft_overlong_punishment", samples, kwargs=punishing).total == [0.0] * 3


def test_a_new_reward_passes_its_own_test(tmp_path):
    folder = tmp_path / "edges"
    files = new_reward("sharp_edges", folder)
    assert {path.name for path in files} == {
        "pyproject.toml",
        "sharp_edges_reward.py",
        "test_sharp_edges_reward.py",
    }
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(pytest_run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    with pytest.raises(DinaError, match="is there already"):
        new_reward("sharp_edges", folder)


@pytest.mark.parametrize("name", ["Sharp", "a-b", "class", "../x", ""])
def test_a_new_reward_needs_a_python_name(tmp_path: Path, name: str):
    with pytest.raises(DinaError, match="cannot name a function"):
        new_reward(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()
