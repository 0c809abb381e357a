"""A real engine, the real judge and the report, on a model of a few thousand weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings
from dina.eval.evaluate import compare_checkpoints, evaluate_checkpoint
from dina.eval.judge import RewardJudge
from dina.eval.report import write_report
from dina.model.checkpoint import save_checkpoint
from dina.rollout.protocol import Prompt
from tests.tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint

SETTINGS = BenchmarkSettings(samples_per_prompt=2, seed=5)


def prompts() -> list[Prompt]:
    wanted = {"include": [{"class": "star", "color": "red"}]}
    picture = np.full((32, 48, 3), 240, np.uint8)
    return [
        Prompt("a", "a red star", "t2i", (2, 2), None, {"tag": "colors", **wanted}),
        Prompt("b", "a star", "t2i", (2, 3), None, {"tag": "single_object", **wanted}),
        Prompt("c", "how many?", "vqa", None, picture, {"tag": "vqa", "answer": "3"}),
    ]


@pytest.fixture(scope="module")
def judge():
    made = RewardJudge()
    yield made
    made.close()


def test_a_checkpoint_evaluated_twice_draws_the_same_pictures(tmp_path, judge):
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    first, second = (evaluate_checkpoint(checkpoint, prompts(), judge, SETTINGS) for _ in range(2))
    assert len(first.rows) == 5 and first.failures == []
    assert first.rows == second.rows
    for a, b in zip(first.rows, second.rows, strict=True):
        assert np.array_equal(a.image, b.image)
    assert not np.array_equal(first.rows[0].image, first.rows[1].image)
    assert all(0 <= row.score <= 1 for row in first.rows)


def test_two_checkpoints_compared_and_reported(tmp_path, judge):
    before, changed = save_tiny_checkpoint(tmp_path / "before"), tiny_checkpoint()
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(1.5)
    save_checkpoint(changed, tmp_path / "after")
    comparison = compare_checkpoints(
        before, tmp_path / "after", prompts(), judge, SETTINGS, out=tmp_path / "out"
    )
    assert [r.seed for r in comparison.before.rows] == [r.seed for r in comparison.after.rows]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["label"] == "GenEval-style (scenes detector)"
    page = write_report(tmp_path / "out", comparison=comparison).read_text("utf-8")
    assert "a red star" in page and "mean of 2 of six categories" in page


def test_a_missing_checkpoint_is_an_error_for_people(tmp_path, judge):
    with pytest.raises(DinaError, match="nowhere"):
        evaluate_checkpoint(tmp_path / "nowhere", prompts(), judge)
