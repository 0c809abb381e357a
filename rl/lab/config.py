"""The typed recipe of ``dina lab stability``: which runs, and when one counts as exploded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from dina.rl.recipe.section import Section

NONE = "none"
"""The arm that corrects nothing, which the others are set against."""

Overrides = list[Annotated[str, Field(pattern=r"^[\w.]+=.*$")]]


class ExplosionConfig(Section):
    """A run has exploded from the step at which running means say so."""

    entropy_factor: float = Field(
        1.5,
        gt=1,
        description="entropy above so many times its lowest so far, and above that of the first steps",
    )
    grad_norm_factor: float | None = Field(
        None,
        gt=1,
        description="gradient norm above so many times that of the first steps, at that step or before; null: any. "
        "Planted actions raise it from the first step on",
    )
    window: int = Field(5, ge=1, description="steps of the running means, and of the first ones")


class StabilityRecipe(Section):
    """Everything that the study depends on."""

    output_dir: str = Field("runs/stability", min_length=1, description="folder of the runs and the report")
    recipe: str = Field(min_length=1, description="training recipe of all runs: a file or a shipped name")
    overrides: Overrides = Field([], description="key=value changes to it, for all runs")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2], min_length=1, description="of each arm")
    settings: dict[str, Overrides] = Field(
        min_length=1, description="samplers by name, as changes such as rollout.faults.precision=int8"
    )
    arms: dict[str, Overrides] = Field(
        min_length=1,
        description="ways to deal with the mismatch by name, as changes; `none` is the first of them",
    )
    sweeps: dict[str, list[float]] = Field(
        {}, description="further arms that set one key, such as {filters.mismatch_tau: [0.05, 0.5]}"
    )
    explosion: ExplosionConfig = Field(default_factory=ExplosionConfig, description="what counts as one")
    eval: str | list[str] | None = Field(
        None, description="prompts on which the final weights are scored with a sampler without faults"
    )
    eval_limit: int | None = Field(None, ge=1, description="at most so many of them per category")
    keep_checkpoints: bool = Field(False, description="keep the weights of finished runs")

    @field_validator("arms")
    @classmethod
    def _has_a_baseline(cls, arms: dict[str, Overrides]) -> dict[str, Overrides]:
        if arms.get(NONE) != []:
            raise ValueError(
                f"needs an arm `{NONE}: []`, which corrects nothing and is what the others are set against"
            )
        return arms

    @model_validator(mode="after")
    def _folders_differ(self) -> StabilityRecipe:
        for names in (list(self.settings), list(self.all_arms)):
            slugs = [slug(name) for name in names]
            for name, own in zip(names, slugs, strict=True):
                if slugs.count(own) > 1:
                    raise ValueError(
                        f"two of {', '.join(names)} would lie in the folder {own!r}; rename {name!r}"
                    )
        return self

    @property
    def all_arms(self) -> dict[str, Overrides]:
        """``arms``, and one for each value of ``sweeps``, called ``key=value``."""
        swept = [f"{key}={value:g}" for key, values in self.sweeps.items() for value in values]
        return {**self.arms, **{name: [name] for name in swept}}

    def runs(self) -> list[StabilityRun]:
        """All runs: every seed of all arms before the next seed, so that a part of the study is balanced.

        A setting that changes nothing is the control: its sampler is right, and only ``none`` is run.
        """
        return [
            StabilityRun(
                setting, arm, seed, Path(self.output_dir) / slug(setting) / slug(arm) / f"seed_{seed}"
            )
            for seed in self.seeds
            for setting in self.settings
            for arm in self.all_arms
            if self.settings[setting] or arm == NONE
        ]


@dataclass(frozen=True)
class StabilityRun:
    """One run of the study, and its folder."""

    setting: str
    arm: str
    seed: int
    folder: Path


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")
