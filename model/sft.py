"""Supervised training on TRL's SFTTrainer: stages in order, resumable, ending in a checkpoint folder."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from dina.errors import DinaError
from dina.model.build import new_checkpoint
from dina.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_policy
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.optim import muon_with_adamw
from dina.model.sft_config import SftRecipe, StageConfig
from dina.model.sft_data import Collator, PlannedRows, encode_rows, load_rows, plan_batches

logger = logging.getLogger(__name__)


class TrainingStoppedError(DinaError):
    """The user stopped the run; its last checkpoint can be resumed from."""

    exit_code = 130


class DinaSFTTrainer(SFTTrainer):
    """SFTTrainer with DiNA's objective, data order and optimizers.

    Args:
        recipe: loss weights and optimizer come from here.
        train_rows: examples in the order in which they are to be trained on.
        eval_rows: examples of the evaluation loss.
        encoded: the dataset behind ``train_rows``.
    """

    loss_is_scaled_for_ga = False
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        recipe: SftRecipe,
        stage: StageConfig,
        encoded: Dataset,
        train_rows: PlannedRows,
        eval_rows: PlannedRows | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_dataset=encoded, eval_dataset=eval_rows, **kwargs)
        self.train_dataset = train_rows
        self.recipe, self.stage = recipe, stage
        weights = recipe.loss.level_weights
        self.level_weights = None if weights is None else torch.tensor(weights, device=self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's own objective (docs/format.md) with the recipe's weights."""
        output = model(
            **inputs,
            code_loss_weight=self.recipe.loss.code_loss_weight,
            level_weights=self.level_weights,
            use_cache=False,
        )
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in ("text_loss", "code_loss"):
            value = self.accelerator.gather_for_metrics(getattr(output, name))
            metrics[name].append(value.mean().item())
        return (output.loss, output) if return_outputs else output.loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.recipe.optim.name == "muon":
            optim = self.recipe.optim
            self.optimizer = muon_with_adamw(
                self.model,
                self.stage.learning_rate,
                optim.muon_learning_rate,
                optim.betas,
                optim.eps,
                optim.weight_decay,
                # Decay would move the text rows, whose gradient is masked in alignment.
                decay_tables=self.stage.trainable == "all",
            )
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        # Decay would move the text rows, whose gradient is masked in alignment.
        frozen_rows = self.stage.trainable == "alignment"
        return [name for name in names if not (frozen_rows and "embed_tokens" in name)]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints to resume from are no models to publish."""

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""


class _Metrics(TrainerCallback):
    """Appends what the trainer logs to ``metrics.jsonl``; a resumed run overwrites the lines after its step."""

    def __init__(self, path: Path, stage: str, first_step: int, rows_per_step: int) -> None:
        self.path, self.stage, self.first_step, self.rows_per_step = path, stage, first_step, rows_per_step
        self.last: tuple[int, float] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.last = (state.global_step, time.perf_counter())
        done = self.first_step + state.global_step
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= done]
        self.path.write_text("".join(line + "\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        assert self.last is not None
        now, steps = time.perf_counter(), state.global_step - self.last[0]
        line = {"step": self.first_step + state.global_step, "stage": self.stage, **logs}
        if "loss" in logs and steps:
            line["samples_per_second"] = round(steps * self.rows_per_step / (now - self.last[1]), 2)
            self.last = (state.global_step, now)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class _StopOnInterrupt(TrainerCallback):
    """The first Ctrl-C ends the run after the current step with a checkpoint; the second one at once."""

    stopped = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.previous = signal.signal(signal.SIGINT, self._stop)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def _stop(self, *_: Any) -> None:
        self.stopped = True
        signal.signal(signal.SIGINT, self.previous)
        logger.warning("stopping after this step; press Ctrl-C again to stop at once")


def run_sft(recipe: SftRecipe, resume: bool = False) -> Path:
    """Trains all stages and returns the folder of the final checkpoint, ``<output_dir>/final``.

    The run folder holds ``config.yaml``, ``metrics.jsonl``, ``checkpoints/<stage>/`` and ``final/``.

    Args:
        resume: continue the run in ``output_dir`` where its last checkpoint is.

    Raises:
        DinaError: bad input, or a run folder that is already used. TrainingStoppedError: after Ctrl-C.
    """
    run = recipe.output_dir
    if not resume and (run / "metrics.jsonl").exists():
        raise DinaError(f"{run} already holds a run; resume it or choose another output_dir")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    source = recipe.model
    checkpoint = new_checkpoint(source.new) if source.new else load_checkpoint(source.checkpoint or "")
    checkpoint.model.model.set_attn_implementation(recipe.attention)
    train, evaluation = _encoded(recipe, checkpoint)
    first_step = 0
    for stage in recipe.stages:
        _run_stage(recipe, stage, checkpoint, train, evaluation, first_step, resume)
        first_step += stage.max_steps
    if PartialState().is_main_process:
        save_checkpoint(checkpoint, run / "final", getattr(torch, recipe.save_dtype))
    return run / "final"


def _encoded(recipe: SftRecipe, checkpoint: Checkpoint) -> tuple[Dataset, Dataset | None]:
    data, context = recipe.data, checkpoint.model.config.text_config.max_position_embeddings

    def encode(rows: Dataset) -> Dataset:
        return encode_rows(
            rows, checkpoint.processor, checkpoint.visual_tokenizer, context, data.encode_batch_size
        )

    train = encode(load_rows(data.train))
    if data.eval:
        return train, encode(load_rows(data.eval))
    if not data.eval_rows:
        return train, None
    if data.eval_rows >= len(train):
        raise DinaError(f"data.eval_rows is {data.eval_rows}, but there are only {len(train)} rows")
    parts = train.train_test_split(data.eval_rows, seed=0)
    return parts["train"], parts["test"]


def _run_stage(
    recipe: SftRecipe,
    stage: StageConfig,
    checkpoint: Checkpoint,
    train: Dataset,
    evaluation: Dataset | None,
    first_step: int,
    resume: bool,
) -> None:
    folder = recipe.output_dir / "checkpoints" / stage.name
    finished = folder / "final"
    if resume and finished.exists():
        checkpoint.model.load_state_dict(load_file(finished / "model.safetensors"))
        return
    last = _last_checkpoint(folder) if resume else None
    lora = recipe.lora if stage.trainable == "all" else None
    mask = _set_trainable(checkpoint.model, stage.trainable)
    trainer, stopper = _trainer(recipe, stage, checkpoint, train, evaluation, first_step, lora, folder)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if mask is not None:
        mask.remove()
    if stopper.stopped and trainer.state.global_step < stage.max_steps:
        raise TrainingStoppedError(
            f"stopped in stage {stage.name} at step {trainer.state.global_step}; resume the run to continue"
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    checkpoint.model = model.merge_and_unload() if lora else model
    checkpoint.model.__dict__.pop("forward", None)  # SFTTrainer's fused head
    checkpoint.model.to("cpu").eval()
    if trainer.accelerator.is_main_process:
        _save_stage(checkpoint.model, finished)
    trainer.accelerator.wait_for_everyone()


def _save_stage(model: DinaForConditionalGeneration, folder: Path) -> None:
    """Writes beside and renames, so that the folder's presence means the stage is done."""
    partial = folder.with_name("final.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_policy(model, partial)
    partial.rename(folder)


def _last_checkpoint(folder: Path) -> Path | None:
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / "trainer_state.json").exists()
    }
    return found[max(found)] if found else None


def _set_trainable(model: DinaForConditionalGeneration, which: str) -> RemovableHandle | None:
    """Freezes the backbone for alignment: code and special rows, pre-buffer and depth head stay free.

    Returns the hook that masks the gradient of the text rows; remove it after the stage.
    """
    model.requires_grad_(which == "all")
    if which == "all":
        return None
    for part in (model.visual_head, model.code_embedding, model.get_input_embeddings()):
        part.requires_grad_(True)
    text_rows = model.config.text_vocab_size
    return model.get_input_embeddings().weight.register_hook(
        lambda grad: torch.cat([torch.zeros_like(grad[:text_rows]), grad[text_rows:]])
    )


def _trainer(
    recipe: SftRecipe,
    stage: StageConfig,
    checkpoint: Checkpoint,
    train: Dataset,
    evaluation: Dataset | None,
    first_step: int,
    lora: dict[str, Any] | None,
    folder: Path,
) -> tuple[DinaSFTTrainer, _StopOnInterrupt]:
    args = _arguments(recipe, stage, folder, evaluation is not None)
    levels, data = checkpoint.processor.levels, recipe.data
    micro_batches = stage.max_steps * recipe.gradient_accumulation * args.world_size
    seed = recipe.seed + first_step
    plan = plan_batches(train, micro_batches, recipe.batch_size, data.task_weights, data.drop_prompt, seed)
    rows_per_step = recipe.batch_size * recipe.gradient_accumulation * args.world_size
    stopper = _StopOnInterrupt()
    trainer = DinaSFTTrainer(
        recipe,
        stage,
        train,
        PlannedRows(train, levels, plan),
        None if evaluation is None else PlannedRows(evaluation, levels),
        model=checkpoint.model,
        args=args,
        processing_class=checkpoint.processor,
        data_collator=Collator(checkpoint.model.config.pad_token_id or 0),
        peft_config=_peft_config(lora),
        callbacks=[
            _Metrics(recipe.output_dir / "metrics.jsonl", stage.name, first_step, rows_per_step),
            stopper,
        ],
    )
    return trainer, stopper


def _peft_config(lora: dict[str, Any] | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(**lora)


def _arguments(recipe: SftRecipe, stage: StageConfig, folder: Path, evaluates: bool) -> SFTConfig:
    optim = recipe.optim
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        max_steps=stage.max_steps,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.scheduler,
        lr_scheduler_kwargs=stage.scheduler_kwargs,
        warmup_steps=stage.warmup_steps,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        max_grad_norm=optim.max_grad_norm,
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        eval_strategy="steps" if evaluates and recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps,
        prediction_loss_only=True,
        bf16=recipe.precision == "bfloat16",
        gradient_checkpointing=recipe.gradient_checkpointing,
        torch_compile=recipe.compile,
        deepspeed=str(recipe.deepspeed) if isinstance(recipe.deepspeed, Path) else recipe.deepspeed,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),  # without it, several CPU ranks would not find each other
        train_sampling_strategy="sequential",
        dataloader_num_workers=recipe.data.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        report_to=recipe.report_to or "none",
        run_name=recipe.run_name,
        disable_tqdm=not sys.stderr.isatty(),
    )
