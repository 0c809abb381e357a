"""The typed recipe of ``dina prepare``. Sections that ``dina train`` has too are the same here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dina.rl.recipe.config import ModelConfig, RolloutConfig
from dina.rl.recipe.rewards import RewardConfig
from dina.rl.recipe.section import Grid, ModuleAttr, Section


class SourceConfig(Section):
    path: str = Field(min_length=1, description="JSONL, Parquet, or a picture folder with metadata.jsonl")
    name: str | None = Field(
        None, min_length=1, description="what reports and rows call it; by default the file's name"
    )
    columns: dict[str, str] = Field(
        {}, description="columns to rename, as {ours: theirs}, such as {prompt: problem}"
    )
    task: Literal["t2i", "vqa"] | None = Field(None, description="task of rows that name none")
    limit: int | None = Field(None, ge=1, description="read the first n rows only")

    @property
    def label(self) -> str:
        return self.name or Path(self.path).stem


class DuplicatesConfig(Section):
    """Two rows are alike if prompt, answer and picture are."""

    image_distance: int | None = Field(
        16,
        ge=0,
        le=64,
        description="bits of 64 in which the pHashes of one picture may differ; null: keep all",
    )
    color_tolerance: int = Field(
        24,
        ge=0,
        le=255,
        description="largest difference of colour (of 255) in any cell of 16×16; pHash does not see colours",
    )


class PrepareRecipe(Section):
    """Everything that prepared data depends on."""

    output_dir: str = Field("runs/prepare", min_length=1, description="folder of the rows and the report")
    format: Literal["parquet", "jsonl"] = Field(
        "parquet", description="of the rows; jsonl keeps the pictures beside it"
    )
    seed: int = Field(0, ge=0, description="decides the rollouts")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; null leaves torch's choice")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:1")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 computes under autocast")
    model: ModelConfig = Field(description="the base model, whose rollouts say how hard a row is")
    sources: list[SourceConfig] = Field(min_length=1, description="what is merged, the first copy stays")
    renderer: ModuleAttr | None = Field(None, description="module:attr that draws the `scene` of a row")
    grid: Grid | None = Field(None, description="[rows, columns] of pictures to draw, where a row has none")
    skip_invalid: bool = Field(
        False, description="count rows that cannot be read or do not fit, and go on; false stops at the first"
    )
    duplicates: DuplicatesConfig = Field(
        default_factory=DuplicatesConfig, description="what counts as a copy"
    )
    num_rollouts: int = Field(4, ge=2, description="samples of the base model per row")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="how they are drawn")
    rewards: list[RewardConfig] = Field(min_length=1, description="what is right: their weighted sum")
    right: float = Field(1.0, description="drop a row if all its rollouts score at least this")
    wrong: float = Field(0.0, description="drop a row if all its rollouts score at most this")

    @field_validator("sources")
    @classmethod
    def _distinct_names(cls, sources: list[SourceConfig]) -> list[SourceConfig]:
        labels = [source.label for source in sources]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two sources are called {label!r}; give each a `name` of its own")
        return sources

    @model_validator(mode="after")
    def _fits_together(self) -> PrepareRecipe:
        if self.wrong >= self.right:
            raise ValueError(f"wrong {self.wrong} must be below right {self.right}")
        if self.rollout.replay:
            raise ValueError("rollout.replay is for training; preparing draws its own rollouts")
        return self
