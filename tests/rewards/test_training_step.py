"""Rewards of other people, and rewards that go wrong, in steps of a training run."""

from __future__ import annotations

import importlib
import json
import logging
import time
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dina.errors import DinaError
from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from dina.rl.loop import Trainer, train
from dina.rl.recipe.config import TrainConfig
from tests.rewards.samples import picture
from tests.rewards.test_plugins import install_redness
from tests.rewards.test_server import answering, free_port, saying
from tests.rl.ray_world import all_metrics, recipe, save_world

FAULTS = "tests.rewards.faults"
LONG = 250.0  # a busy machine takes its time to start a process
GROUP = 2

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


def config(world: Path, out: Path, *rewards: dict[str, Any], **changes: Any) -> TrainConfig:
    """Two steps of three groups in one process, with these rewards beside ``red``."""
    fields = {
        "algorithm": {"num_generations": GROUP, "prompts_per_step": 3, "minibatches": 1},
        "run": {"max_steps": 2, "save_steps": 1, "sample_steps": 1, "save_rollouts": 0},
        "rewards": [{"use": "tests.rl.rewards:red"}, *rewards],
        "rl": {"runner": "local"},
    }
    return recipe(world, out, **fields | changes)


def step(config: TrainConfig) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The metrics of a first step, and its samples as they are recorded."""
    folder = Path(config.run.output_dir)
    trainer = Trainer(config, folder)
    try:
        metrics = trainer.step(1)
    finally:
        trainer.close()
    return metrics, records(folder)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples" / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def healthy(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The samples of a step in which nothing goes wrong."""
    fine = {"use": f"{FAULTS}:fine", "name": "it", "weight": 0.5}
    return step(config(world, tmp_path_factory.mktemp("healthy"), fine))[1]


def check_only_the_last_group_is_lost(
    metrics: dict[str, float], found: list[dict[str, Any]], healthy: list[dict[str, Any]], reason: str
) -> None:
    whole, lost = healthy[:-GROUP], found[-GROUP:]
    assert [sample["reward"] for sample in found] == [sample["reward"] for sample in whole] + [None] * GROUP
    for sample in lost:
        assert sample["scores"]["it"]["failed"] and sample["scores"]["it"]["score"] is None
        assert reason in sample["scores"]["it"]["reason"]
        assert not sample["scores"]["red"]["failed"]
    assert metrics["rewards/it/fail_rate"] == pytest.approx(GROUP / len(found))
    assert metrics["rewards/it/mean"] == 0.5 and metrics["rewards/red/applied"] == 1.0
    assert metrics["reward"] == pytest.approx(np.mean([sample["reward"] for sample in whole]))
    assert metrics["updates/taken"] == 1


FAULT_ROWS = {
    "raises": ({}, "RuntimeError: no such file: weights.bin"),
    "one_short": ({}, "returned 1 scores for 2 samples"),
    "not_a_number": ({}, "returned nan"),
    "hangs": ({"timeout": 2.0}, "timed out after 2 s"),
    "allocates": ({"timeout": LONG, "memory_gib": 0.75}, "MemoryError"),
    "is_killed": ({"timeout": LONG, "isolate": True}, "was killed by SIGKILL"),
}


def struck(victim: str, fault: str) -> dict[str, Any]:
    """A reward that goes wrong on one prompt."""
    kwargs = {"victim": victim, "fault": fault}
    fields, _ = FAULT_ROWS[fault]
    return {
        "use": f"{FAULTS}:strikes",
        "name": "it",
        "weight": 0.5,
        "batch_size": GROUP,
        "kwargs": kwargs,
        **fields,
    }


@pytest.mark.parametrize("fault", FAULT_ROWS)
def test_a_fault_costs_its_samples_and_the_step_completes(
    world: Path, healthy: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    victim, reason = healthy[-1]["id"], FAULT_ROWS[fault][1]
    with caplog.at_level(logging.WARNING):
        metrics, found = step(config(world, tmp_path / "run", struck(victim, fault)))
    check_only_the_last_group_is_lost(metrics, found, healthy, reason)
    assert f"failed for {GROUP} of 6 samples; the first is sample 4 (prompt {victim}): " in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("fault", FAULT_ROWS)
def test_a_fault_of_a_required_reward_stops_the_run(
    world: Path, healthy: list[dict[str, Any]], tmp_path: Path, fault: str
) -> None:
    reward = struck(healthy[-1]["id"], fault) | {"required": True}
    with pytest.raises(DinaError, match=f"reward 'it' failed on sample 4 .*{FAULT_ROWS[fault][1]}"):
        train(config(world, tmp_path / "run", reward))


def test_what_was_done_before_a_stop_is_kept_and_gone_on_from(world: Path, tmp_path: Path) -> None:
    failing = {"use": f"{__name__}:fails_in_step_2", "required": True}
    run = tmp_path / "run"
    with pytest.raises(DinaError, match="the disk is full"):
        train(config(world, run, failing))
    assert [line["step"] for line in all_metrics(run)] == [1]
    MENDED.append(True)
    train(config(world, run, failing), resume=run)
    assert [line["step"] for line in all_metrics(run)] == [1, 2]


MENDED: list[bool] = []


def fails_in_step_2(prompts: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    if trainer_state.global_step == 2 and not MENDED:
        raise OSError("the disk is full")
    return [0.5] * len(prompts)


def judged(handler: BaseHTTPRequestHandler, victim: str, fault: str) -> None:
    """0.5 for every sample, and for the victim what a server in trouble does."""
    samples = json.loads(handler.body)["samples"]  # type: ignore[attr-defined]
    if victim not in [sample["id"] for sample in samples]:
        body = json.dumps({"results": [{"score": 0.5}] * len(samples)}).encode()
        return saying(200, body)(handler)
    if fault == "down":
        handler.connection.close()
    elif fault == "slow":
        time.sleep(5.0)
    else:
        saying(200, b"<html>Welcome!</html>")(handler)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("down", "no answer within 1.5 s"),
        ("slow", "did not answer within"),
        ("garbage", "no list of results"),
    ],
)
def test_a_server_in_trouble_costs_the_samples_it_was_asked_for(
    world: Path, healthy: list[dict[str, Any]], tmp_path: Path, fault: str, reason: str
) -> None:
    victim = healthy[-1]["id"]
    with answering(lambda handler: judged(handler, victim, fault)) as url:
        kwargs = {"servers": url, "timeout": 1.5, "request_size": GROUP, "backoff": 0.1}
        reward = {"use": "remote", "name": "it", "weight": 0.5, "kwargs": kwargs}
        metrics, found = step(config(world, tmp_path / "run", reward))
    check_only_the_last_group_is_lost(metrics, found, healthy, reason)


def test_a_held_out_reward_whose_server_is_gone_costs_nothing(
    world: Path, healthy: list[dict[str, Any]], tmp_path: Path
) -> None:
    kwargs = {"servers": f"http://127.0.0.1:{free_port()}", "timeout": 0.5}
    gone = {"use": "remote", "name": "it", "held_out": True, "kwargs": kwargs}
    metrics, found = step(config(world, tmp_path / "run", gone))
    assert metrics["rewards/it/fail_rate"] == 1.0 and "rewards/it/mean" not in metrics
    assert [sample["reward"] for sample in found] == [sample["scores"]["red"]["score"] for sample in healthy]
    assert metrics["updates/taken"] == 1


PICTURES = {
    "1x1": Image.new("RGB", (1, 1), (255, 0, 0)),
    "RGBA": Image.new("RGBA", (40, 30), (255, 0, 0, 128)),
    "grey": Image.new("L", (40, 30), 76),
}


def sees(images: list[list[Image.Image]], **columns: Any) -> list[float]:
    """1 where the picture of the question is an RGB picture."""
    return [float(pictures[0].mode == "RGB") for pictures in images]


def questions(folder: Path, picture: Path, count: int = 3) -> Path:
    rows = [
        {"id": f"q{i}", "task": "vqa", "prompt": "what colour?", "image": str(picture), "answer": "red"}
        for i in range(count)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


@pytest.mark.parametrize("kind", PICTURES)
def test_questions_about_pictures_of_every_kind_are_scored(world: Path, tmp_path: Path, kind: str) -> None:
    PICTURES[kind].save(tmp_path / "asked.png")
    data = {"train": str(questions(tmp_path, tmp_path / "asked.png"))}
    rewards = [{"use": f"{__name__}:sees"}, {"use": "vqa"}]
    metrics, found = step(config(world, tmp_path / "run", data=data, rewards=rewards))
    assert metrics["rewards/sees/mean"] == 1.0 and metrics["rewards/vqa/applied"] == 1.0
    assert len(found) == 6 and all(sample["reward"] is not None for sample in found)


def test_a_truncated_and_an_endless_picture_stop_the_run_before_its_first_step(
    world: Path, tmp_path: Path
) -> None:
    cut, large = tmp_path / "cut.png", tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    Image.new("1", (8000, 8000)).save(large)
    for file, words in (
        (cut, "questions.jsonl:1: image: cannot be read: .*truncated"),
        (large, "prompt 'q0' needs 1000016 positions"),
    ):
        data = {"train": str(questions(tmp_path, file, count=1))}
        with pytest.raises(DinaError, match=words):
            train(config(world, tmp_path / file.stem, data=data))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompts.jsonl:1: prompt: .* at least 1 character"),
        ("word " * 20_000, "prompt 'p' needs .* positions"),
    ],
    ids=["empty", "100 kB"],
)
def test_an_empty_and_an_endless_prompt_stop_the_run_before_its_first_step(
    world: Path, tmp_path: Path, prompt: str, words: str
) -> None:
    row = {"id": "p", "prompt": prompt, "grid": [2, 3]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    with pytest.raises(DinaError, match=words):
        train(config(world, tmp_path / "run", data={"train": str(tmp_path / "prompts.jsonl")}))


@pytest.mark.parametrize("prompt", ["", "„word " * 17_000], ids=["empty", "100 kB"])
@pytest.mark.parametrize("size", [(1, 1), (16, 512)])
def test_rewards_that_look_at_pictures_take_any_picture_and_any_prompt(
    prompt: str, size: tuple[int, int]
) -> None:
    names = ["objects", "ocr", *(["image_quality"] if find_spec("brisque") else [])]
    suite = RewardSuite([RewardSpec(name) for name in names])
    sample = picture(np.full((*size, 3), 90, np.uint8), prompt, include=[{"class": "star"}], text=["CAT"])
    result = suite.score([sample])
    suite.close()
    assert result.failures == []
    assert result.per_reward == {name: [0.0] for name in names}


def test_a_plugin_by_name_a_function_of_trl_and_an_async_one_train_a_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install_redness(tmp_path))
    importlib.invalidate_caches()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "asked.png")
    rows = (world / "train.jsonl").read_text() + questions(tmp_path, tmp_path / "asked.png").read_text()
    (tmp_path / "both.jsonl").write_text(rows)
    rewards = [
        {"use": "redness", "weight": 0.5, "kwargs": {"gain": 2.0}},
        {"use": "trl.rewards:think_format_reward", "tasks": ["vqa"]},
        {"use": f"{FAULTS}:reads_pictures", "weight": 0.25},
        {"use": "tests.rl.rewards:red", "weight": 0},
    ]
    data = {"train": str(tmp_path / "both.jsonl")}
    run = train(config(world, tmp_path / "run", data=data, rewards=rewards))
    lines, found = all_metrics(run), records(run)
    assert [line["step"] for line in lines] == [1, 2] and all(line["updates/taken"] == 1 for line in lines)
    assert {sample["task"] for sample in found} == {"t2i", "vqa"}
    for sample in found:
        scores = {name: entry["score"] for name, entry in sample["scores"].items()}
        if sample["task"] == "vqa":
            assert scores == {"think_format_reward": 0.0} and sample["reward"] == 0.0
            continue
        assert scores.keys() == {"redness", "reads_pictures", "red"}
        assert scores["redness"] == pytest.approx(2 * scores["red"])
        assert sample["reward"] == pytest.approx(scores["redness"] / 2 + scores["reads_pictures"] / 4)
