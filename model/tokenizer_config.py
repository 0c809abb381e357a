"""Recipe of a tokenizer training run: typed, documented, and strict about unknown words."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from transformers import PreTrainedConfig

from dina.model.vision_config import DinaPixelDecoderConfig, DinaQuantizerConfig, DinaVisionConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PictureData(_Section):
    """Where pictures come from.

    A source is either ``module:attr``, a function that takes ``count`` and ``seed`` and yields uint8 arrays
    ``[H, W, 3]``, or a path: a Parquet file or folder, a folder of pictures, or a JSONL file that names them.
    """

    train: str = Field(description="source of the training pictures")
    train_count: int = Field(default=4000, gt=0, description="how many of them are held in memory")
    eval: str | None = Field(
        default=None, description="source of evaluation pictures; none: the train source"
    )
    eval_count: int = Field(default=200, gt=0, description="pictures that the final figures are measured on")
    image_column: str = Field(default="image", description="column of the data set that holds the picture")


class StageSettings(_Section):
    """What both stages share."""

    steps: int = Field(default=1000, ge=0, description="optimizer steps; 0 leaves the stage out")
    batch_pictures: int = Field(default=32, gt=0, description="pictures packed into one step")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak rate; linear warm-up, then cosine")
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient norm above which it is clipped")


class TokenizationStage(StageSettings):
    """Stage 1: encoder, bridge and residual quantiser (paper §4.1.1, eq. 5)."""

    commitment_weight: float = Field(default=0.25, ge=0, description="weight of the commitment loss")
    semantic_weight: float = Field(default=1.0, ge=0, description="weight of the cosine reconstruction loss")
    semantic_target: str = Field(
        default="features",
        description="what the cosine loss reconstructs: `features` (this encoder's own, before quantisation), "
        "`pixels` (of the token), or the folder of a trained tokenizer whose frozen encoder gives the features",
    )
    pixel_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of reconstructing each token's pixels from its code vectors; needed where no "
        "pretrained encoder carries the meaning, 0 as in the paper where one does",
    )
    train_encoder: bool = Field(default=True, description="false: only bridge and quantiser learn")
    initialise_pictures: int = Field(
        default=256, gt=0, description="pictures that seed the codebooks by k-means"
    )
    initialise_at: int = Field(
        default=0, ge=0, description="steps without quantisation before the codebooks are seeded"
    )


class DetokenizationStage(StageSettings):
    """Stage 2: the pixel decoder, with encoder and codebooks frozen (paper §4.1.1, eq. 6)."""

    l1_weight: float = Field(default=1.0, ge=0, description="weight of the absolute pixel error")
    l2_weight: float = Field(default=1.0, ge=0, description="weight of the squared pixel error")
    edge_weight: float = Field(
        default=0.0, ge=0, description="weight of the absolute error of pixel differences"
    )


class TokenizerRecipe(_Section):
    """A tokenizer training run, for ``dina tokenizer RECIPE``."""

    output_dir: str = Field(
        default="runs/tokenizer", description="folder of the run; `final` in it is the result"
    )
    seed: int = Field(default=0, ge=0, description="fixes data, initialisation and batches")
    threads: int = Field(default=2, gt=0, description="CPU threads")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …")
    resume: bool = Field(
        default=True, description="continue from the checkpoint in output_dir if there is one"
    )
    init_from: str | None = Field(
        default=None, description="folder of a tokenizer whose weights are the start"
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="precision of the final file; codebooks are float32 in any case"
    )
    log_every: int = Field(default=20, gt=0, description="steps between lines of metrics.jsonl")
    save_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    data: PictureData
    model: dict[str, Any] = Field(default_factory=dict, description="fields of DinaVisionConfig")
    tokenization: TokenizationStage = Field(default_factory=TokenizationStage)
    detokenization: DetokenizationStage = Field(default_factory=DetokenizationStage)

    @field_validator("model")
    @classmethod
    def _known_model_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        _check_fields(DinaVisionConfig, value, "model")
        _check_fields(DinaQuantizerConfig, value.get("vq_config") or {}, "model.vq_config")
        decoder = value.get("visual_decoder_config") or {}
        _check_fields(DinaPixelDecoderConfig, decoder, "model.visual_decoder_config")
        return value

    def vision_config(self) -> DinaVisionConfig:
        return DinaVisionConfig(**self.model)


def _check_fields(config: type[PreTrainedConfig], given: dict[str, Any], where: str) -> None:
    known = [field.name for field in fields(config)]
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{where} has no field {name!r}{hint}")
