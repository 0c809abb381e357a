from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dina.errors import DinaError
from dina.model.checkpoint import load_checkpoint
from dina.rl.loop import Trainer, train
from dina.rl.recipe.config import TrainConfig
from dina.rollout.protocol import Sample
from tests.tiny_checkpoint import save_tiny_checkpoint

PROMPTS = [f"a red star {i}" for i in range(7)]
TIMES = ("timing_s/", "step_time", "/seconds", "/queue_time")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    save_tiny_checkpoint(folder / "checkpoint")
    rows = [{"id": str(i), "prompt": text, "grid": [2, 3], "tag": "t"} for i, text in enumerate(PROMPTS)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(start: Path, out: Path, **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "run": {"output_dir": str(out), "max_steps": 6, "save_steps": 3, "sample_steps": 2, "threads": 1},
        "model": {"path": str(start / "checkpoint")},
        "data": {"train": str(start / "train.jsonl")},
        "algorithm": {"num_generations": 4, "prompts_per_step": 3, "minibatches": 2, "num_iterations": 2},
        "filters": {"entropy_k": 2.0, "mismatch_tau": 0.1},
        "optim": {
            "learning_rate": 1e-2,
            "micro_batch_size": 4,
            "warmup_steps": 2,
            "lr_scheduler_type": "cosine",
        },
        "rewards": [{"use": "tests.rl.rewards:red"}],
        "rl": {"runner": "local"},
    }
    for key, value in changes.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    return TrainConfig.model_validate(fields)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(t in k for t in TIMES)} for line in lines]


@pytest.fixture(scope="module")
def whole_run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(start, tmp_path_factory.mktemp("runs") / "whole"))


def test_a_run_learns_what_is_rewarded(whole_run: Path) -> None:
    rewards = [line["reward"] for line in metrics_of(whole_run)]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2


def test_the_folder_is_complete(whole_run: Path) -> None:
    names = {path.name for path in whole_run.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "samples", "checkpoints", "report.html", "environment.json"}
    assert expected <= names
    assert {p.name for p in (whole_run / "checkpoints").iterdir()} == {"step_3", "step_6"}
    assert len(list((whole_run / "samples" / "step_000002").glob("*.png"))) == 6
    load_checkpoint(whole_run / "checkpoints" / "step_6")


def test_metrics_carry_the_agreed_names(whole_run: Path) -> None:
    names = set(metrics_of(whole_run)[0])
    level_names = {f"level_{level}/{m}" for level in range(3) for m in ("entropy", "logp_diff", "clip_ratio")}
    assert level_names <= names
    assert {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/red/mean",
        "entropy",
        "grad_norm",
        "clip_ratio/region_mean",
        "completions/mean_length",
        "sampling/sampling_logp_difference/mean",
        "sampling/importance_sampling_ratio/mean",
        "mismatch/max_prob_diff",
        "mismatch/frac_over_0.1",
        "filter/entropy/dropped",
        "filter/mismatch/dropped",
    } <= names


def test_sampler_and_actor_agree(whole_run: Path) -> None:
    assert all(line["mismatch/max_prob_diff"] < 1e-4 for line in metrics_of(whole_run))
    assert all(line["filter/mismatch/dropped"] == 0 for line in metrics_of(whole_run))


def test_three_steps_resumed_for_three_are_six_bit_for_bit(
    start: Path, whole_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # max_steps also sets the schedule, so the first half is cut short instead of asking for 3.
    _train_until(recipe(start, out), 3)
    assert len(metrics_of(out)) == 3
    torch.rand(5)  # whatever else uses random numbers meanwhile
    train(recipe(start, out), resume=out)
    assert metrics_of(out) == metrics_of(whole_run)
    for name in ("model.safetensors", "learner/rank_0/training_state.safetensors"):
        resumed = load_file(out / "checkpoints" / "step_6" / name)
        straight = load_file(whole_run / "checkpoints" / "step_6" / name)
        assert resumed.keys() == straight.keys()
        assert all(torch.equal(resumed[k], straight[k]) for k in resumed), name


def _train_until(config: TrainConfig, step: int) -> None:
    """Trains as a user does who presses Ctrl-C during ``step``."""
    original = Trainer.step

    def interrupted(self: Trainer, number: int) -> dict[str, float]:
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
            train(config)


def test_ctrl_c_finishes_the_step_and_saves(start: Path, tmp_path: Path) -> None:
    _train_until(recipe(start, tmp_path / "run"), 2)
    assert (tmp_path / "run" / "checkpoints" / "step_2" / "manifest.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_checkpoint_that_was_evaluated_best_stays(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.3, 0.1])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"eval/overall": next(scores)})
    often = {"max_steps": 4, "save_steps": 1, "save_total_limit": 1}
    data = {"eval": str(start / "train.jsonl"), "eval_steps": 1}
    run = train(recipe(start, tmp_path / "run", run=often, data=data))
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step_2", "step_4"}
    assert [line["eval/overall"] for line in metrics_of(run)] == [0.2, 0.9, 0.3, 0.1]


def test_a_folder_that_holds_a_run_is_not_overwritten(start: Path, whole_run: Path) -> None:
    with pytest.raises(DinaError, match="holds a run; resume it"):
        train(recipe(start, whole_run))


def test_a_batch_that_loses_every_sequence_takes_no_step_and_stops_in_the_end(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(self: Trainer, number: int) -> list[Sample]:
        samples = generate(self, number)
        for sample in samples:  # a sampler that reports a false probability for one action of every sequence
            first = sample.stream.actions[0].nonzero()[0]
            sample.logps[first[0], first[1]] = -60.0 if sample.logps[first[0], first[1]] > -0.5 else 0.0
        return samples

    generate = Trainer._generate
    monkeypatch.setattr(Trainer, "_generate", lie)
    config = recipe(start, tmp_path / "run", run={"max_skipped_updates": 8})
    trainer = Trainer(config, tmp_path / "run")
    before = {k: v.clone() for k, v in trainer.roles.learner.checkpoint.model.state_dict().items()}
    metrics = trainer.step(1)
    assert metrics["filter/mismatch/dropped"] == 1
    assert metrics["updates/taken"] == 0 and metrics["updates/skipped"] == 4
    after = trainer.roles.learner.checkpoint.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    records = (tmp_path / "run" / "samples" / "samples.jsonl").read_text().splitlines()
    assert records and all(json.loads(line)["drops"][0]["reason"] == "mismatch" for line in records)
    trainer.step(2)
    with pytest.raises(DinaError, match="8 minibatches in a row had no sequence"):
        trainer.stop_if_nothing_is_learnt()


def test_a_failed_reward_is_no_zero(start: Path, tmp_path: Path) -> None:
    config = recipe(start, tmp_path / "run", rewards=[{"use": "tests.rl.rewards:sometimes"}])
    metrics = Trainer(config, tmp_path / "run").step(1)
    assert metrics["rewards/sometimes/fail_rate"] == pytest.approx(4 / 12)
    assert metrics["reward"] > 0.1
    assert metrics["updates/taken"] == 4


def test_a_reward_that_always_fails_stops_the_run(start: Path, tmp_path: Path) -> None:
    config = recipe(start, tmp_path / "run", rewards=[{"use": "tests.rl.rewards:broken"}])
    with pytest.raises(DinaError, match="failing rewards"):
        train(config)
    required = recipe(start, tmp_path / "two", rewards=[{"use": "tests.rl.rewards:broken", "required": True}])
    with pytest.raises(DinaError, match="the scorer is gone"):
        train(required)


def test_a_prompt_longer_than_the_context_is_named(start: Path, tmp_path: Path) -> None:
    rows = {"id": "long one", "prompt": "a red star " * 100, "grid": [2, 3]}
    (tmp_path / "train.jsonl").write_text(json.dumps(rows))
    config = recipe(start, tmp_path / "run", data={"train": str(tmp_path / "train.jsonl")})
    with pytest.raises(DinaError, match="prompt 'long one' needs"):
        train(config)


def test_a_picture_that_does_not_fit_is_found_before_the_first_step(start: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "huge", "prompt": "a red star", "grid": [30, 4]}))
    config = recipe(start, tmp_path / "run", data={"train": str(tmp_path / "train.jsonl")})
    with pytest.raises(DinaError, match="prompt 'huge' needs"):
        Trainer(config, tmp_path / "run")


def test_a_resumed_run_refuses_other_settings_and_stays_in_its_folder(
    start: Path, whole_run: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole_run, moved)
    with pytest.raises(DinaError, match="optim.learning_rate was 0.01, now 0.5"):
        train(recipe(start, moved, optim={"learning_rate": 0.5}), resume=moved)
    train(recipe(start, tmp_path / "elsewhere", run={"max_steps": 7}), resume=moved)
    assert len(metrics_of(moved)) == 7
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_that_stopped_before_its_first_checkpoint_can_begin_again(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    train(recipe(start, out, run={"max_steps": 1}, optim={"warmup_steps": 0}))
    assert len(metrics_of(out)) == 1


def test_bfloat16_moves_the_weights_and_agrees_with_itself(start: Path, tmp_path: Path) -> None:
    config = recipe(start, tmp_path / "run", run={"dtype": "bfloat16"}, optim={"learning_rate": 1e-5})
    trainer = Trainer(config, tmp_path / "run")
    before = {k: v.clone() for k, v in trainer.roles.learner.checkpoint.model.named_parameters()}
    metrics = trainer.step(1)
    assert metrics["mismatch/max_prob_diff"] < 0.05
    moved = [
        k
        for k, v in trainer.roles.learner.checkpoint.model.named_parameters()
        if not torch.equal(v, before[k])
    ]
    assert len(moved) > len(before) / 2


def test_a_missing_or_truncated_checkpoint_is_an_error(start: Path, tmp_path: Path) -> None:
    with pytest.raises(DinaError, match="is not there"):
        train(recipe(start, tmp_path / "run", model={"path": str(tmp_path / "nothing")}))
    save_tiny_checkpoint(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(DinaError, match="weights cannot be read"):
        train(recipe(start, tmp_path / "run", model={"path": str(tmp_path / "cut")}))


def test_beta_needs_and_logs_the_reference(start: Path, tmp_path: Path) -> None:
    config = recipe(start, tmp_path / "run", algorithm={"beta": 0.1})
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.step(1)["kl"] >= 0
    assert trainer.step(2)["kl"] > 0
    assert "level_0/kl" in trainer.step(3)
