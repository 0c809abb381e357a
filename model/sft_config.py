"""The typed recipe of `dina sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dina.model.build import NewModel


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class ModelSource(_Strict):
    """Where the model comes from: exactly one of the two."""

    checkpoint: Path | None = Field(default=None, description="DiNA checkpoint folder to train on")
    new: NewModel | None = Field(default=None, description="A model to build first")

    @model_validator(mode="after")
    def _one(self) -> ModelSource:
        if (self.checkpoint is None) == (self.new is None):
            raise ValueError("give either checkpoint or new")
        return self


class DataConfig(_Strict):
    """Rows with columns prompt, image, task (t2i, where there is none, or vqa), and for vqa answer."""

    train: list[Path] = Field(
        min_length=1, description="Folders or files: Parquet, JSONL with picture paths, or an image folder"
    )
    eval: list[Path] = Field(
        default_factory=list, description="The same for the evaluation loss; none by default"
    )
    eval_rows: int = Field(
        default=0, ge=0, description="Without eval: rows of train that are held out for the loss"
    )
    task_weights: dict[str, float] = Field(
        default_factory=dict, description="Share of every task in a batch; by default its share of the rows"
    )
    drop_prompt: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Probability that a drawing loses its prompt and starts at the size tag, for guidance",
    )
    encode_batch_size: int = Field(
        default=64, ge=1, description="Pictures that the visual tokenizer reads at once"
    )
    num_workers: int = Field(default=0, ge=0, description="DataLoader workers")


class LossConfig(_Strict):
    code_loss_weight: float = Field(
        default=0.25, ge=0, description="Factor of the code losses beside text losses"
    )
    level_weights: list[float] | None = Field(
        default=None, description="One factor per code level; 1 each by default"
    )


class OptimConfig(_Strict):
    name: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: hidden matrices by Muon, everything else by AdamW"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW's decay rates")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay of matrices")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient clipping")
    muon_learning_rate: float = Field(
        default=0.02, gt=0, description="Muon's rate where AdamW's is learning_rate"
    )


class StageConfig(_Strict):
    """One run of the trainer over the mixture."""

    name: str = Field(pattern=r"^[\w-]+$", description="Names the stage in logs and checkpoints")
    trainable: Literal["all", "alignment"] = Field(
        default="all",
        description="alignment: code rows, special rows, pre-buffer and depth head alone; the backbone is frozen",
    )
    max_steps: int = Field(ge=1, description="Optimizer steps")
    learning_rate: float = Field(default=2e-3, gt=0, description="Peak of AdamW's rate")
    warmup_steps: int = Field(default=100, ge=0, description="Steps of linear warm-up")
    scheduler: str = Field(default="cosine", description="Any scheduler name of transformers")
    scheduler_kwargs: dict[str, Any] = Field(default_factory=dict, description="Its arguments")


class SftRecipe(_Strict):
    """Everything that a supervised run depends on."""

    model: ModelSource = Field(description="The model to train")
    data: DataConfig = Field(description="Rows and their mixture")
    stages: list[StageConfig] = Field(min_length=1, description="Stages in order, e.g. prealign, then sft")
    loss: LossConfig = Field(default=LossConfig(), description="Weights of the objective")
    optim: OptimConfig = Field(default=OptimConfig(), description="Optimizer")
    batch_size: int = Field(default=64, ge=1, description="Rows per device and forward pass")
    gradient_accumulation: int = Field(default=1, ge=1, description="Forward passes per optimizer step")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 = autocast")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        default="sdpa", description="Attention implementation of the backbone"
    )
    gradient_checkpointing: bool = Field(default=False, description="Trade compute for memory")
    compile: bool = Field(default=False, description="torch.compile the model")
    lora: dict[str, Any] | None = Field(
        default=None, description="Fields of peft.LoraConfig; adapters are merged into the final checkpoint"
    )
    deepspeed: Path | dict[str, Any] | None = Field(default=None, description="DeepSpeed config")
    seed: int = Field(default=0, description="Seed of data order and dropout")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; its default otherwise")
    output_dir: Path = Field(description="Run folder")
    logging_steps: int = Field(default=10, ge=1, description="Steps between lines of metrics.jsonl")
    save_steps: int = Field(default=500, ge=1, description="Steps between checkpoints to resume from")
    save_total_limit: int | None = Field(default=2, ge=1, description="Checkpoints kept per stage")
    eval_steps: int | None = Field(default=None, ge=1, description="Steps between evaluation losses")
    report_to: list[str] = Field(default_factory=list, description="wandb, tensorboard, …")
    run_name: str | None = Field(default=None, description="Name in the reporting service")
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="Precision of the final checkpoint's weights"
    )

    @model_validator(mode="after")
    def _muon_alone(self) -> SftRecipe:
        if self.deepspeed is not None and self.optim.name == "muon":
            raise ValueError("DeepSpeed shards AdamW, not muon; set optim.name to adamw")
        return self

    @model_validator(mode="after")
    def _distinct_stages(self) -> SftRecipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need distinct names, got {names}")
        return self
