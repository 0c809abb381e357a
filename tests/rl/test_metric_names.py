"""Everything that a run writes stands in the table of metrics, and everything in the table is written by a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dina.eval.metric_table import find, sections, undescribed
from dina.rl.loop import train
from tests.rl.ray_world import all_metrics, recipe, save_world

# With workers of their own alone; tests/rl/test_ray_run.py looks at these.
BY_WORKERS = {"probe/mean_logp_diff", "probe/max_logp_diff", "faults/<kind>"}


def parts(
    prompts: list[str], generated_images: list[Any], log_extra: Callable[..., None], **columns: Any
) -> list[float]:
    """A share of red, with the sub-scores that the guards take up."""
    for name in ("excess_objects", "excess_text", "seen"):
        log_extra(name, [0.5] * len(prompts))
    return [float(np.asarray(image)[..., 0].mean() / 255) for image in generated_images]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that a run writes which has everything switched on that one process can do."""
    world = save_world(tmp_path_factory.mktemp("world"))
    file = world / "checkpoint" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["max_position_embeddings"] = 256  # room for a question, its picture and an answer
    file.write_text(json.dumps(config))
    Image.new("RGB", (64, 64), "red").save(world / "asked.png")
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    rows += [
        {
            "id": f"q{i}",
            "task": "vqa",
            "tag": "q",
            "prompt": f"how many {i}?",
            "answer": "1",
            "image": "asked.png",
        }
        for i in range(4)
    ]
    (world / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(
        recipe(
            world,
            world / "run",
            run={"max_steps": 2, "save_steps": 0, "save_rollouts": 0},
            rl={"runner": "local"},
            data={
                "sampling": {"t": 2, "q": 2},
                "eval": str(world / "train.jsonl"),
                "eval_steps": 2,
                "eval_reward": {"use": "tests.rl.rewards:silence"},
            },
            rollout={"max_completion_length": 4},
            algorithm={"prompts_per_step": 4, "beta": 0.1, "refill_rounds": 1},
            filters={"entropy_k": 1.0, "mismatch_tau": 0.1},
            correction={"mode": "token_truncate"},
            rewards=[
                {"use": "tests.rl.test_metric_names:parts", "clip": [0.0, 0.5]},
                {"use": "tests.rl.rewards:length"},
                {"use": "tests.rl.rewards:silence", "held_out": True},
            ],
        )
    )
    return {name for line in all_metrics(run) for name in line}


def test_everything_written_is_described(written: set[str]) -> None:
    assert len(written) > 90
    assert undescribed(written) == []


def test_everything_described_is_written(written: set[str]) -> None:
    seen = {row.name for name in written if (row := find(name)) is not None}
    rows = {metric.name for section in sections() for metric in section.metrics}
    assert rows - seen == BY_WORKERS
