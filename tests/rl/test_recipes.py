from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from dina.model.sft_config import SftRecipe
from dina.model.tokenizer_config import TokenizerRecipe
from dina.rl.lab.config import StabilityRecipe
from dina.rl.prepare.config import PrepareRecipe
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import load_recipe, recipe_names

KINDS: dict[str, type[BaseModel]] = {
    "cluster/longcat_next": TrainConfig,
    "cluster/qwen_7b": TrainConfig,
    "scenes/tokenizer": TokenizerRecipe,
    "scenes/sft": SftRecipe,
    "scenes/sft_binding": SftRecipe,
    "scenes/sft_more": SftRecipe,
    "scenes/sft_describing": SftRecipe,
    "scenes/sft_reasoning": SftRecipe,
    "scenes/prepare": PrepareRecipe,
    "scenes/understanding_grpo": TrainConfig,
    "scenes/mixed_grpo": TrainConfig,
    "scenes/stability": StabilityRecipe,
    "scenes/stability_t2i": StabilityRecipe,
    "scenes/t2i_grpo": TrainConfig,
    "scenes/quickstart": TrainConfig,
    "scenes/three_rewards": TrainConfig,
    "digits/tokenizer": TokenizerRecipe,
    "digits/sft": SftRecipe,
    "digits/grpo": TrainConfig,
}


def test_every_shipped_recipe_is_known_here() -> None:
    assert recipe_names() == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_shipped_recipes_are_valid(name: str) -> None:
    load_recipe(name, [], KINDS[name])


@pytest.mark.parametrize("name", ["scenes/t2i_grpo", "scenes/quickstart", "scenes/three_rewards"])
def test_shipped_training_starts_from_files_that_ship(name: str) -> None:
    config = load_recipe(name, [], TrainConfig)
    assert isinstance(config.data.train, str)
    assert Path(config.data.train).is_file()
    assert (Path(config.model.path) / "model.safetensors").is_file()
