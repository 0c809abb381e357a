from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from dina.errors import DinaError
from dina.rl.recipe import load as recipe_module
from dina.rl.recipe.load import dump_recipe, find_recipe, load_recipe


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Optim(Strict):
    learning_rate: float = 1e-3
    kind: Literal["constant", "linear"] = "constant"
    shape: Literal["uniform"] | float | list[float] = "uniform"


class Item(Strict):
    use: str
    weight: float = 1.0
    kwargs: dict[str, Any] = {}


class Config(Strict):
    data: str = ""
    optim: Optim = Field(default_factory=Optim)
    rewards: list[Item] = []
    steps: int = 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def problem(path: Path | str, *overrides: str) -> str:
    with pytest.raises(DinaError) as caught:
        load_recipe(path, overrides, Config)
    return str(caught.value)


def test_a_recipe_extends_a_chain_of_recipes(folder: Path) -> None:
    write(
        folder / "base.yaml",
        "steps: 5\noptim:\n  learning_rate: 1e-5\n  kind: linear\nrewards: [{use: a}, {use: b}]\n",
    )
    write(folder / "mid" / "middle.yaml", "extends: ../base.yaml\noptim: {learning_rate: 2e-5}\n")
    write(folder / "leaf.yaml", "extends: mid/middle.yaml\nrewards: [{use: c}]\n")
    config = load_recipe("leaf.yaml", [], Config)
    assert config.optim.learning_rate == 2e-5
    assert config.optim.kind == "linear"
    assert config.steps == 5
    assert [item.use for item in config.rewards] == ["c"]


def test_an_override_fills_a_section_that_a_file_has_set_to_null(folder: Path) -> None:
    write(folder / "a.yaml", "rewards: [{use: a}]\noptim: null\n")
    assert load_recipe("a.yaml", ["optim.learning_rate=2e-5"], Config).optim.learning_rate == 2e-5


def test_overrides_are_yaml_and_the_last_wins(folder: Path) -> None:
    write(folder / "a.yaml", "rewards: [{use: a}]\n")
    config = load_recipe(
        "a.yaml",
        [
            "steps=7",
            "steps=9",
            "optim.shape=[1, 0.5]",
            "rewards.0.weight=2",
            "rewards.0.kwargs.mode=no",
            "data=x=y",
        ],
        Config,
    )
    assert config.steps == 9
    assert config.optim.shape == [1, 0.5]
    assert config.rewards[0].weight == 2
    assert config.rewards[0].kwargs == {"mode": "no"}
    assert config.data == "x=y"


def test_dotted_paths_are_relative_to_the_file_that_says_them(folder: Path) -> None:
    write(folder / "deep" / "base.yaml", "data: ../prompts.jsonl\n")
    write(folder / "top.yaml", "extends: deep/base.yaml\nrewards: [{use: ./r.py, kwargs: {f: plain/path}}]\n")
    config = load_recipe("top.yaml", [], Config)
    assert config.data == str(folder / "prompts.jsonl")
    assert config.rewards[0].use == str(folder / "r.py")
    assert config.rewards[0].kwargs["f"] == "plain/path"


def test_a_dumped_recipe_reads_back_equal(folder: Path) -> None:
    config = Config(data="x", optim=Optim(learning_rate=3e-7, shape=[1.0, 0.25]), rewards=[Item(use="no")])
    write(folder / "resolved.yaml", dump_recipe(config))
    assert load_recipe("resolved.yaml", [], Config) == config


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            "steps: 1\noptim:\n  lerning_rate: 1\n",
            [],
            "a.yaml:3: optim.lerning_rate: unknown key; did you mean 'learning_rate'?",
        ),
        (
            "learning_rate: 1\n",
            [],
            "a.yaml:1: learning_rate: unknown key; did you mean 'optim.learning_rate'?",
        ),
        ("lerning_rate: 1\n", [], "a.yaml:1: lerning_rate: unknown key; did you mean 'optim.learning_rate'?"),
        ("zzz: 1\n", [], "a.yaml:1: zzz: unknown key; known: data, optim, rewards, steps"),
        ("\nsteps: many\n", [], "a.yaml:2: steps: must be a valid integer, not 'many'"),
        ("steps: true\n", [], "a.yaml:1: steps: must be a valid integer, not true"),
        (
            "optim:\n  kind: liner\n",
            [],
            "a.yaml:2: optim.kind: must be 'constant' or 'linear', not 'liner'; did you mean 'linear'?",
        ),
        (
            "optim:\n  shape: unifrom\n",
            [],
            "a.yaml:2: optim.shape: must be 'uniform' or must be a valid number",
        ),
        ("optim: 3\n", [], "a.yaml:1: optim: is a section; give its keys below it, not 3"),
        ("rewards:\n- use: a\n- weight: 2\n", [], "a.yaml:3: rewards.1.use: is required and not set"),
        (
            "rewards:\n- use: a\n  wait: 2\n",
            [],
            "a.yaml:3: rewards.0.wait: unknown key; did you mean 'weight'?",
        ),
        ("steps: 1\nsteps: 2\n", [], "a.yaml:2: steps is already set in line 1"),
        ("steps: [1\ndata: x\n", [], "a.yaml:2: not valid YAML"),
        ("- 1\n", [], "a.yaml: a recipe is a mapping"),
        ("", ["stepz=3"], "command line (stepz=3): stepz: unknown key; did you mean 'steps'?"),
        ("", ["steps"], "command line: 'steps' is not of the form section.key=value"),
        ("", ["steps=[1"], "command line: the value of 'steps=[1' is not valid YAML"),
        ("steps: 1\n", ["steps.x=2"], "command line (steps.x=2): steps is a value, it has no key 'x'"),
        ("rewards: [{use: a}]\n", ["rewards.1.use=b"], "rewards is a list of 1; '1' is not one of 0 to 0"),
    ],
)
def test_a_problem_is_named_with_its_place(
    folder: Path, text: str, overrides: list[str], expected: str
) -> None:
    write(folder / "a.yaml", text)
    assert expected in problem("a.yaml", *overrides)


def test_every_problem_is_told_at_once(folder: Path) -> None:
    write(folder / "a.yaml", "steps: x\noptim:\n  kind: x\n")
    assert [line.split(": ")[1] for line in problem("a.yaml").splitlines()] == ["optim.kind", "steps"]


def test_the_place_is_that_of_the_file_which_said_it_last(folder: Path) -> None:
    write(folder / "base.yaml", "\n\noptim:\n  kind: x\n  learning_rate: x\n")
    write(folder / "leaf.yaml", "extends: base.yaml\noptim:\n  learning_rate: y\n")
    assert problem("leaf.yaml").splitlines() == [
        "leaf.yaml:3: optim.learning_rate: must be a valid number, not 'y'",
        "base.yaml:4: optim.kind: must be 'constant' or 'linear', not 'x'",
    ]


def test_a_circle_of_recipes_is_an_error(folder: Path) -> None:
    write(folder / "a.yaml", "extends: b.yaml\n")
    write(folder / "b.yaml", "steps: 1\nextends: a.yaml\n")
    assert (
        problem("a.yaml")
        == "b.yaml:2: the recipes extend each other in a circle: a.yaml extends b.yaml extends a.yaml"
    )


def test_a_missing_base_is_an_error(folder: Path) -> None:
    write(folder / "a.yaml", "steps: 1\nextends: bse.yaml\n")
    write(folder / "base.yaml", "")
    assert (
        problem("a.yaml")
        == "a.yaml:2: extends 'bse.yaml', but there is no file bse.yaml; did you mean 'base.yaml'?"
    )


def test_shipped_recipes_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_module, "RECIPES", folder / "shipped")
    file = write(folder / "shipped" / "scenes" / "t2i_grpo.yaml", "steps: 3\n")
    for name in ("scenes/t2i_grpo", "scenes/t2i_grpo.yaml", "recipes/scenes/t2i_grpo.yaml"):
        assert find_recipe(name) == file
    with pytest.raises(DinaError, match="did you mean 'scenes/t2i_grpo'"):
        find_recipe("scenes/t2i_gpro.yaml")


def test_a_local_file_wins_over_a_shipped_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_module, "RECIPES", folder / "shipped")
    write(folder / "shipped" / "a.yaml", "steps: 3\n")
    local = write(folder / "a.yaml", "steps: 4\n")
    assert find_recipe("a.yaml").resolve() == local


def test_a_file_that_is_no_text_is_an_error(folder: Path) -> None:
    (folder / "a.yaml").write_bytes(b"\xff\xfe\x00bin")
    assert "a.yaml cannot be read" in problem("a.yaml")
