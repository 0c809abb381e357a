"""The recipes of docs/your-own-data.md: real digits through every command, at a size for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra digits")

from sklearn.datasets import load_digits

from dina.errors import DinaError
from dina.eval.compare import Comparison
from dina.model.sft import run_sft
from dina.model.sft_config import SftRecipe
from dina.model.tokenizer_config import TokenizerRecipe
from dina.model.tokenizer_training import run_tokenizer
from dina.recipes.digits.build import build, parts, picture, prompt_rows
from dina.recipes.digits.opinions import opinions
from dina.recipes.digits.reads_digit import ReadsDigit
from dina.rl.checkpoint_cli import compare
from dina.rl.loop import train
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import load_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "data"
    build(folder)
    return folder


def test_the_classifiers_read_digits_that_they_never_saw(data: Path) -> None:
    digits = load_digits()
    mine = parts(len(digits.target))[0][:200]
    images, wanted = [picture(digits.images[i]) for i in mine], digits.target[mine].tolist()
    for name in ("reader", "judge"):
        strict = ReadsDigit(str(data / f"{name}.npz"), strict=True)
        strict.setup()
        assert np.mean(strict(images, wanted)) > 0.9
        assert np.mean(strict(images, [(digit + 1) % 10 for digit in wanted])) < 0.05


def test_no_test_prompt_is_trained_on() -> None:
    train_words, test_words = ({row["prompt"] for row in prompt_rows(test)} for test in (False, True))
    assert len(train_words) == len(test_words) == 80 and not train_words & test_words


def test_written_data_is_never_overwritten(data: Path) -> None:
    with pytest.raises(DinaError, match="--out"):
        build(data)


def test_the_tutorial_runs_from_pictures_to_a_comparison(data: Path, tmp_path: Path) -> None:
    folders = [f"output_dir={tmp_path / name}" for name in ("tokenizer", "sft", "grpo")]
    small = ["tokenization.steps=4", "tokenization.initialise_at=1", "detokenization.steps=2", "threads=1"]
    source = [f"data.train={data / 'train'}", "data.train_count=64", "data.eval_count=8"]
    run_tokenizer(load_recipe("digits/tokenizer", [*source, *small, folders[0]], TokenizerRecipe))
    visual = f"model.new.visual_tokenizer={tmp_path / 'tokenizer' / 'final'}"
    source = [f"data.train=[{data / 'train'}]", f"model.new.text_tokenizer.corpus={data / 'train'}"]
    small = ["stages.0.max_steps=2", "batch_size=4", "data.eval_rows=4", "threads=1"]
    start = run_sft(load_recipe("digits/sft", [*source, *small, visual, folders[1]], SftRecipe))
    changes = [
        f"model.path={start}",
        f"data.train={data / 'prompts.jsonl'}",
        f"rewards.0.kwargs.classifier={data / 'reader.npz'}",
        f"rewards.1.kwargs.classifier={data / 'judge.npz'}",
        f"run.{folders[2]}",
        "run.max_steps=1",
        "run.threads=1",
        "algorithm.prompts_per_step=10",
        "algorithm.num_generations=2",
        "optim.warmup_steps=0",
        "filters.entropy_k=null",
    ]
    config = load_recipe("digits/grpo", changes, TrainConfig)
    run = train(config)
    metrics = json.loads((run / "metrics.jsonl").read_text())
    assert 0 < metrics["reward"] < 1 and metrics["reward"] == pytest.approx(metrics["rewards/reader/mean"])
    assert metrics["rewards/judge/applied"] == 1.0
    scores = compared(
        start, run / "checkpoints" / "step_1", data, tmp_path / "compare", config.rewards[0].use
    )
    assert scores.before.label.startswith("ReadsDigit (classifier=")
    assert len(scores.averaged) == 10 and scores.overall.difference.n == 10
    assert len([line for line in opinions(scores) if "before" in line]) == 4


def compared(before: Path, after: Path, data: Path, out: Path, reward: str) -> Comparison:
    settings: dict[str, Any] = {
        "reward": reward,
        "settings": [f"classifier={data / 'judge.npz'}", "strict=true"],
    }
    compare(before, after, [data / "test.jsonl"], out, limit=1, device="cpu", **settings)
    return Comparison.load(out)
