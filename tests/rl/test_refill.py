from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dina.rewards.protocol import RewardFailure, SuiteResult
from dina.rl.loop import Trainer, train
from dina.rl.recipe.config import TrainConfig
from dina.rl.saved_rollouts import load_rollouts
from tests.rl.ray_world import metrics_of, recipe
from tests.tiny_checkpoint import save_tiny_checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of two tags; the even ones have no signal under ``red_of_odd``."""
    folder = tmp_path_factory.mktemp("world")
    file = save_tiny_checkpoint(folder / "checkpoint") / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["max_position_embeddings"] = 256
    file.write_text(json.dumps(config))
    rows = [
        {"id": str(i), "prompt": f"a red star {i}", "grid": [2, 3], "tag": "ab"[i % 3 // 2]}
        for i in range(12)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.fromarray(np.full((56, 56, 3), 200, np.uint8)).save(folder / "grey.png")
    asked = [
        {"id": f"q{i}", "question": f"how many {i}?", "answer": "1", "image": "grey.png", "pass_rate": i / 8}
        for i in range(1, 8)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return folder


def refilling(world: Path, out: Path, rounds: int = 4, **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "algorithm": {"refill_rounds": rounds},
        "rewards": [{"use": "tests.rl.rewards:red_of_odd"}],
        "data": {"sampling": {"a": 2, "b": 1}},
        "rl": {"runner": "local"},
    }
    return recipe(world, out, **{**fields, **changes})


def test_groups_without_signal_are_replaced_by_others_of_their_tag(world: Path, tmp_path: Path) -> None:
    plain = Trainer(refilling(world, tmp_path / "plain", rounds=0), tmp_path / "plain")
    filled = Trainer(refilling(world, tmp_path / "filled"), tmp_path / "filled")
    numbers = {}
    for trainer in (plain, filled):
        metrics = trainer.step(1)
        samples = load_rollouts(trainer.folder / "rollouts" / "step_000001")
        assert [(s.request.group, s.request.index) for s in samples] == [
            (g, i) for g in range(3) for i in range(4)
        ]
        numbers[trainer] = ([int(s.prompt.text.split()[-1]) for s in samples[::4]], metrics)
        assert sorted(s.prompt.tag for s in samples[::4]) == ["a", "a", "b"]
    first, before = numbers[plain]
    second, after = numbers[filled]
    assert any(number % 2 == 0 for number in first), "the example needs a group without signal"
    assert all(number % 2 for number in second)
    assert [n for n in first if n % 2] == [s for f, s in zip(first, second, strict=True) if f % 2]
    assert before["frac_reward_zero_std"] > 0 and after["frac_reward_zero_std"] == 0
    silent = sum(number % 2 == 0 for number in first) / 3
    assert after["refill/replaced"] == pytest.approx(silent) and after["refill/left"] == 0
    assert after["refill/drawn"] >= silent
    assert after["refill/reward_before"] == pytest.approx(before["reward"])
    assert not any(name.startswith("refill/") for name in before)


def test_rounds_are_bounded_and_silent_groups_stay(world: Path, tmp_path: Path) -> None:
    config = refilling(world, tmp_path / "run", rounds=2, rewards=[{"use": "tests.rl.rewards:silence"}])
    metrics = Trainer(config, tmp_path / "run").step(1)
    assert (metrics["refill/drawn"], metrics["refill/replaced"], metrics["refill/left"]) == (2.0, 0.0, 1.0)
    assert metrics["frac_reward_zero_std"] == 1


def mixed(world: Path, out: Path) -> TrainConfig:
    """Drawings and answers in one run, hard questions twice as often, with refilling."""
    return refilling(
        world,
        out,
        data={
            "train": [str(world / "train.jsonl"), str(world / "questions.jsonl")],
            "tags": ["a", "vqa"],
            "sampling": {"a": 1, "vqa": 2},
            "difficulty": {"hard": 2, "medium": 1, "easy": 1},
        },
        rollout={"max_completion_length": 4},
        rewards=[
            {"use": "tests.rl.rewards:red_of_odd", "tasks": ["t2i"]},
            {"use": "tests.rl.rewards:length", "tasks": ["vqa"]},
        ],
    )


def test_a_mixed_run_resumes_bit_for_bit_and_tells_its_tasks_apart(world: Path, tmp_path: Path) -> None:
    whole = train(mixed(world, tmp_path / "whole"))
    halved = mixed(world, tmp_path / "halved")
    stopped = Trainer(halved, tmp_path / "halved")
    for number in range(1, 4):
        stopped.step(number)
        stopped.finished = number
    checkpoint = tmp_path / "halved" / "checkpoints" / "step_3"
    checkpoint.parent.mkdir(parents=True)
    stopped.save(checkpoint)
    other = Trainer(halved, tmp_path / "halved")
    other.restore(checkpoint)
    rest = [other.step(number) for number in range(4, 7)]
    lines = metrics_of(whole)
    for expected, found in zip(lines[3:], rest, strict=True):
        told = {k: v for k, v in found.items() if k in expected and k != "step"}
        assert told == {k: v for k, v in expected.items() if k != "step"}
    assert lines[0]["task/t2i/mean_length"] == 6 and lines[0]["task/vqa/mean_length"] <= 4
    parts = {name for name in lines[0] if name.startswith("task/")}
    named = ("reward", "frac_reward_zero_std", "mean_length", "entropy", "kept")
    assert parts == {f"task/{task}/{name}" for task in ("t2i", "vqa") for name in named}
    assert lines[0]["reward"] == pytest.approx(
        (lines[0]["task/t2i/reward"] + 2 * lines[0]["task/vqa/reward"]) / 3
    )


def test_over_ray_the_same_groups_are_replaced(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    local = train(refilling(world, tmp_path / "local", run={"max_steps": 2, "save_steps": 0}))
    over_ray = refilling(world, tmp_path / "ray", run={"max_steps": 2, "save_steps": 0}, rl={"runner": "ray"})
    assert metrics_of(train(over_ray)) == metrics_of(local)
    name = Path("checkpoints/step_2/model.safetensors")
    ours, theirs = load_file(tmp_path / "ray" / name), load_file(local / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_rows_of_a_scored_batch_are_replaced() -> None:
    first = SuiteResult(
        [1.0, None], {"r": [1.0, None]}, {"r": [None, {"x": 1}]}, [RewardFailure("r", 1, "no")], {"r": 1.0}
    )
    second = SuiteResult(
        [5.0, None], {"r": [5.0, None]}, {"r": [{"x": 2}, None]}, [RewardFailure("r", 1, "oh")], {"r": 2.0}
    )
    mended = first.with_rows({1: 0}, second)
    assert mended.total == [1.0, 5.0] and mended.per_reward == {"r": [1.0, 5.0]} and mended.failures == []
    assert mended.parts == {"r": [None, {"x": 2}]} and mended.seconds == {"r": 3.0}
    broken = first.with_rows({0: 1}, second)
    assert broken.total == [None, None]
    assert {(f.sample_index, f.reason) for f in broken.failures} == {(0, "oh"), (1, "no")}
