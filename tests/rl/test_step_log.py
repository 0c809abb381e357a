from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dina.eval.sample_log import SampleIndex, SampleRecord
from dina.model.stream import TokenStream
from dina.policies.filters import Drop, WorstAction
from dina.policies.stats import StatSums
from dina.rewards.protocol import RewardFailure, SuiteResult
from dina.rl.learner.batch import Dropped, Measured, UpdateResult
from dina.rl.recipe.config import TrainConfig
from dina.rl.step_log import BETWEEN, DUE, StepLog
from dina.rollout.protocol import Prompt, Request, Sample
from tests.tiny_checkpoint import save_tiny_checkpoint

ROWS, COLUMNS, LEVELS = 2, 3, 2


def drawing(group: int, index: int) -> Sample:
    """A picture of 2 x 3 patches after two prompt tokens, with a newline between its rows."""
    patches = torch.tensor([False, False, True, True, True, False, True, True, True, False])
    actions = torch.zeros(1, len(patches), 1 + LEVELS, dtype=torch.bool)
    actions[0, patches, 1:] = True
    ids = torch.ones(1, len(patches), dtype=torch.long)
    codes = torch.where(patches[None, :, None], 5, -1).expand(1, -1, LEVELS)
    stream = TokenStream(ids, codes, torch.ones_like(ids), actions)
    prompt = Prompt(f"p{group}", "a red star", grid=(ROWS, COLUMNS), columns={"tag": "colors"})
    nothing = torch.zeros(len(patches), 1 + LEVELS)
    picture = np.full((8, 12, 3), index, dtype=np.uint8)
    return Sample(Request(prompt, 7, group, index), stream, nothing, nothing, image=picture)


def scored(count: int, failed: tuple[int, ...] = ()) -> SuiteResult:
    scores = [None if row in failed else row / count for row in range(count)]
    parts = [{"reason": f"as asked {row}", "seen": row} for row in range(count)]
    failures = [RewardFailure("objects", row, "the detector is gone") for row in failed]
    none = [None] * count
    per_reward: dict[str, list[float | None]] = {"objects": scores, "ocr": [*none]}
    return SuiteResult(scores, per_reward, {"objects": [*parts], "ocr": [*none]}, failures, {})


def updated(
    count: int, drops: dict[int, Drop], worst: WorstAction | None = None, steps: int = 1
) -> UpdateResult:
    dropped = [Dropped(row, drop) for row, drop in drops.items()]
    measured = {row: Measured(0.5, worst) for row in range(count)}
    return UpdateResult(StatSums(), {}, dropped, steps, 0, measured=measured)


def log_of(folder: Path, model: str = "nowhere", **run: int) -> StepLog:
    config = {"model": {"path": model}, "data": {"train": "p"}, "rewards": [{"use": "objects"}], "run": run}
    return StepLog(TrainConfig.model_validate(config), folder)


def records(folder: Path) -> list[SampleRecord]:
    index = SampleIndex(folder)
    index.refresh()
    return index.read(index.select()[::-1])


def test_a_record_says_what_became_of_a_sample(tmp_path: Path) -> None:
    samples = [drawing(0, i) for i in range(4)]
    # Position 7 is the second patch of the second row: four patches and a newline come before it.
    worst = WorstAction(7, 2, 0.9, 0.1)
    drop = Drop(0, "mismatch", 0.8, 0.1, worst)
    log_of(tmp_path, sample_steps=1).save(3, samples, scored(4, failed=(3,)), updated(4, {1: drop}, worst))
    by_row = {record.row: record for record in records(tmp_path)}
    assert sorted(by_row) == [0, 1, 2, 3]
    one = by_row[1]
    assert (one.step, one.id, one.tag, one.grid) == (3, "p0", "colors", (2, 3))
    assert (one.reward, one.entropy) == (0.25, 0.5)
    assert one.worst and (one.worst.channel, one.worst.row, one.worst.column) == ("level_1", 1, 1)
    assert one.worst.difference == pytest.approx(0.8)
    assert [(d.reason, d.value, d.threshold) for d in one.drops] == [("mismatch", 0.8, 0.1)]
    assert one.scores["objects"].reason == "as asked 1" and "ocr" not in one.scores
    assert one.reason == "objects 0.25: as asked 1 [left out: mismatch]"
    failed = by_row[3].scores["objects"]
    assert failed.failed and failed.score is None and failed.reason == "the detector is gone"
    # Two pictures of the prompt, and those of the samples in trouble.
    assert sorted(row for row in by_row if by_row[row].picture) == [0, 1, 3]
    index = SampleIndex(tmp_path)
    picture = index.picture(one.picture)
    assert picture is not None and (picture == samples[1].image).all()


def test_between_only_those_in_trouble_are_kept_up_to_a_few(tmp_path: Path) -> None:
    count = 2 * BETWEEN.records
    samples = [drawing(i // 4, i % 4) for i in range(count)]
    log = log_of(tmp_path, sample_steps=10)
    log.save(1, samples, scored(count), updated(count, {}))
    assert not (tmp_path / "samples").exists()
    log.save(2, samples, scored(count), updated(count, {9: Drop(0, "entropy", 2.0, 1.0)}))
    assert [record.row for record in records(tmp_path)] == [9]
    log.save(
        3, samples, scored(count), updated(count, {row: Drop(0, "entropy", 2.0, 1.0) for row in range(count)})
    )
    third = [record for record in records(tmp_path) if record.step == 3]
    assert len(third) == BETWEEN.records
    assert sum(record.picture is not None for record in third) == BETWEEN.troubled


def test_a_step_that_learnt_nothing_is_kept_as_if_due_and_large_batches_in_part(tmp_path: Path) -> None:
    count = DUE.records + 44
    samples = [drawing(i // 4, i % 4) for i in range(count)]
    drops = {row: Drop(0, "non-finite", float("nan"), 0.1) for row in range(count - 4, count)}
    log_of(tmp_path, sample_steps=0).save(1, samples, scored(count), updated(count, drops, steps=0))
    found = records(tmp_path)
    assert len(found) == DUE.records
    assert {count - 4, count - 1} <= {record.row for record in found if record.drops}
    assert sum(record.picture is not None for record in found) == DUE.pictures + 4
    text = (tmp_path / "samples" / "samples.jsonl").read_text()
    assert "NaN" not in text and json.loads(text.splitlines()[-1])["drops"][0]["value"] is None


def test_the_worst_token_is_found_in_the_answer(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    log = log_of(tmp_path / "run", str(checkpoint), sample_steps=1)
    tokenizer = log._processor.tokenizer
    said = tokenizer.encode(" a red star")
    end = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    ids = torch.tensor([[1, 2, *said, end]])
    actions = torch.zeros(1, ids.shape[1], 1 + LEVELS, dtype=torch.bool)
    actions[0, 2:, 0] = True
    stream = TokenStream(ids, torch.full((1, ids.shape[1], LEVELS), -1), torch.ones_like(ids), actions)
    answer = log._processor.decode_text(ids[0, 2:]).strip()
    assert answer == "a red star"
    prompt = Prompt("q", "what is it?", task="vqa", image=np.zeros((4, 4, 3), dtype=np.uint8))
    nothing = torch.zeros(ids.shape[1], 1 + LEVELS)
    sample = Sample(Request(prompt, 1), stream, nothing, nothing, text=answer)
    covered = ""
    for number in range(len(said)):
        record = log._record(
            1, 0, sample, scored(1), updated(1, {}, WorstAction(2 + number, 0, 0.9, 0.2)), True
        )
        assert record.worst and record.worst.channel == "text" and record.worst.span
        covered += answer[slice(*record.worst.span)]
        assert tokenizer.decode(said[number]).strip() in answer
    assert covered == answer
    assert record.question == "step_000001/q000.png" and record.picture is None
