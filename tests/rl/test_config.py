from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dina.errors import DinaError
from dina.rl.recipe.config import TrainConfig, arithmetic
from dina.rl.recipe.load import dump_recipe, load_recipe

BASE = "model: {path: c}\ndata: {train: p.jsonl}\nrewards: [{use: objects}]\n"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(BASE)
    return Path("r.yaml")


def config(base: Path, *overrides: str) -> TrainConfig:
    return load_recipe(base, overrides, TrainConfig)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algorithm.num_generation=4"], "did you mean 'num_generations'?"),
        (["num_generations=4"], "did you mean 'algorithm.num_generations'?"),
        (["algorithm.num_generations=1"], "must be greater than or equal to 2"),
        (
            ["algorithm.prompts_per_step=6", "algorithm.num_generations=5", "algorithm.minibatches=4"],
            "6 × num_generations 5 = 30 sequences do not divide into minibatches 4 (30 / 4 = 7.5); "
            "nearest that fit: 3, 5",
        ),
        (["rollout.top_k=50"], "Set top_k=0 and top_p=1.0"),
        (["rollout.code_top_k=[0, 8]"], "Set top_k=0 and top_p=1.0"),
        (["rollout.code_temperature=[1.0, 0.0]"], "greater than 0"),
        (["rollout.temperature=0"], "must be greater than 0"),
        (["rewards.0.use=objcts"], "there is no reward 'objcts'; did you mean 'objects'?"),
        (["rewards=[]"], "at least 1 item"),
        (["rewards=[{use: objects}, {use: objects}]"], "two rewards are called 'objects'"),
        (["rewards.0.weight=0"], "every weight is 0"),
        (["rewards.0.held_out=true"], "every weight is 0 or held out"),
        (["rewards.0.clip=[1.0, 0.0]"], "must be [low, high] with low below high"),
        (["rewards.0.watches=[ocr]"], "objects watches 'ocr', no trained reward; known: objects"),
        (["rewards.0.use=./my.py"], "there is no reward './my.py'"),
        (["algorithm.loss_type=gpro"], "did you mean 'grpo'?"),
        (["algorithm.level_weights=[1, -1]"], "greater than or equal to 0"),
        (["algorithm.level_weights=0"], "greater than 0"),
        (["filters.entropy_k=3", "algorithm.prompts_per_step=1"], "√(8 - 1) = 2.646"),
        (["correction.clip_min=4"], "clip_min 4.0 must be below clip_max 3.0"),
        (["optim.warmup_steps=101"], "warmup_steps 101 is more than the run's 100 updates"),
        (["optim.learning_rate=.nan"], "finite"),
        (["data.eval_steps=5"], "data.eval names no prompts"),
        (["data.train=[]"], "at least 1 item"),
        (["run.device=gpu"], "run.device"),
        (["learner.ranks=9", "algorithm.minibatches=8"], "learner.ranks 9 is more than the 8 sequences"),
        (["learner.zero_stage=2"], "set learner.ranks to 2 or more"),
        (["learner.zero_stage=1", "learner.ranks=2"], "learner.zero_stage"),
        (["learner.ranks=2", "run.device=cuda:1"], "set run.device to auto or cuda"),
        (["learner.lora.lora_dropout=0.1"], "unknown key"),
        (["learner.lora.rank=4"], "did you mean"),
        (["run.report_to=[wanb]"], "did you mean 'wandb'?"),
    ],
)
def test_impossible_values_are_refused_in_words(base: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(DinaError) as caught:
        config(base, *overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.top_p=0.9", "rollout.allow_truncation=true"],
        ["rollout.code_top_k=[0, 8]", "rollout.allow_truncation=true", "rollout.code_temperature=[1, 0.9]"],
        ["rewards.0.use=my.module:reward"],
        ["algorithm.level_weights=0.5"],
        ["algorithm.level_weights=[1, 0.5, 0.25]"],
        ["filters.entropy_k=2.5", "filters.mismatch_tau=0.3"],
        ["data.train=[a.jsonl, b.jsonl]"],
        ["optim.learning_rate=1e-6"],
        ["learner.ranks=2", "learner.zero_stage=3", "learner.lora.r=4"],
    ],
)
def test_possible_values_are_taken_and_survive_the_round_trip(base: Path, overrides: list[str]) -> None:
    resolved = config(base, *overrides)
    Path("again.yaml").write_text(dump_recipe(resolved))
    assert load_recipe("again.yaml", [], TrainConfig) == resolved


def test_the_arithmetic_is_that_of_the_run(base: Path) -> None:
    rows = dict(
        arithmetic(
            config(
                base,
                "algorithm.prompts_per_step=6",
                "algorithm.num_generations=8",
                "algorithm.minibatches=4",
                "algorithm.num_iterations=2",
                "optim.micro_batch_size=5",
                "rollout.batch_size=20",
                "run.max_steps=10",
            )
        )
    )
    results = {name: text.split("= ")[-1] for name, text in rows.items()}
    assert results == {
        "sequences per step": "48",
        "rollout batches per step": "3",
        "minibatch": "12 sequences",
        "updates per step": "8",
        "sequences per rank and update": "12",
        "micro-batches per update": "3",
        "updates in all": "80",
        "sequences in all": "480",
    }


def test_ranks_share_the_micro_batches(base: Path) -> None:
    rows = dict(arithmetic(config(base, "learner.ranks=3", "optim.micro_batch_size=8")))
    assert rows["sequences per rank and update"] == "64 sequences / 3 ranks = 22"
    assert rows["micro-batches per update"] == "3 ranks × (22 sequences / 8) = 9"


def test_a_reward_of_the_recipe_is_a_reward_spec(base: Path) -> None:
    resolved = config(base, "rewards.0.weight=2", "rewards.0.kwargs.mode=graded").rewards[0]
    spec = resolved.spec()
    assert (spec.label, spec.weight, spec.kwargs) == ("objects", 2, {"mode": "graded"})


def test_every_key_says_what_it_is() -> None:
    def undescribed(model: type[BaseModel], prefix: str = "") -> list[str]:
        found: list[str] = []
        for name, field in model.model_fields.items():
            annotation: Any = field.annotation
            if not field.description or "\n" in field.description:
                found.append(prefix + name)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found += undescribed(annotation, f"{prefix}{name}.")
        return found

    assert undescribed(TrainConfig) == []
