"""Training of the visual tokenizer: stage 1 (codes), stage 2 (pixels), then figures (paper §4.1.1)."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import AdamW

from dina.errors import DinaError
from dina.model import tokenizer_checkpoint as checkpoints
from dina.model.tokenizer_config import StageSettings, TokenizerRecipe
from dina.model.tokenizer_data import load_pictures
from dina.model.tokenizer_report import measure, save_contact_sheet
from dina.model.tokenizer_stages import Metrics, Tokenization, detokenization_loss
from dina.model.visual_tokenizer import DinaVisualTokenizer

StepLoss = Callable[[Tensor, int], tuple[Tensor, Metrics]]
"""Loss and metrics of a batch (indexes of pictures) at a step."""

_BETAS = (0.9, 0.95)
_SHEET_PICTURES = 32
_ENCODE_PICTURES = 256


def run_tokenizer(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Trains a tokenizer and saves it in ``<output_dir>/final``.

    Ctrl-C ends after the current step with a checkpoint; the same recipe then continues with the same numbers.

    Returns:
        the figures of ``<output_dir>/figures.json``, measured on the evaluation pictures.

    Raises:
        DinaError: pictures or checkpoint cannot be used, or the loss is no longer finite.
        KeyboardInterrupt: after the checkpoint that Ctrl-C asked for.
    """
    return TokenizerTraining(recipe).run()


class TokenizerTraining:
    """One run. Every step draws its batch and its random numbers from (seed, stage, step) alone."""

    def __init__(self, recipe: TokenizerRecipe) -> None:
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        name = recipe.device if recipe.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        if recipe.init_from:
            self.tokenizer = DinaVisualTokenizer.from_pretrained(recipe.init_from)
        else:
            self.tokenizer = DinaVisualTokenizer(recipe.vision_config())
        self.tokenizer.to(name)
        self.stage1 = Tokenization(self.tokenizer, recipe.tokenization)
        self.modules = nn.ModuleDict({"tokenizer": self.tokenizer, "stage1": self.stage1}).to(name)
        self.progress = checkpoints.Progress()
        self.optimizer_state: dict[str, Tensor] = {}
        self.pictures: list[Tensor] = []
        self.codes: list[Tensor] = []

    def run(self) -> dict[str, Any]:
        self._resume()
        data = self.recipe.data
        self.pictures = self._load(data.train, data.train_count, self.recipe.seed)
        with _Interrupts() as self.interrupts:
            if self.progress.stage == "tokenization":
                parameters = self.stage1.trained(self.tokenizer)
                self._train(self.recipe.tokenization, parameters, self._tokenization)
                self.progress.stage, self.progress.step = "detokenization", 0
            self.modules.requires_grad_(False)
            self.codes = self._encode_all()
            decoder = self.tokenizer.image_decoder.requires_grad_(True)
            self._train(self.recipe.detokenization, list(decoder.parameters()), self._detokenization)
        return self._finish()

    def _load(self, source: str, count: int, seed: int) -> list[Tensor]:
        column = self.recipe.data.image_column
        return load_pictures(source, count, seed, self.tokenizer.pixels_per_token, column)

    def _images(self, batch: Tensor) -> list[Tensor]:
        return [self.pictures[index].to(self.tokenizer.device).float() / 255 for index in batch.tolist()]

    def _tokenization(self, batch: Tensor, step: int) -> tuple[Tensor, Metrics]:
        settings = self.recipe.tokenization
        if step == settings.initialise_at:
            chosen = torch.randperm(len(self.pictures))[: settings.initialise_pictures]
            self.stage1.initialise(self.tokenizer, self._images(chosen))
        return self.stage1(self.tokenizer, self._images(batch), step)

    def _detokenization(self, batch: Tensor, step: int) -> tuple[Tensor, Metrics]:
        codes = [self.codes[index] for index in batch.tolist()]
        return detokenization_loss(self.tokenizer, self._images(batch), codes, self.recipe.detokenization)

    def _encode_all(self) -> list[Tensor]:
        parts = torch.arange(len(self.pictures)).split(_ENCODE_PICTURES)
        return [codes.clone() for part in parts for codes in self.tokenizer.encode(self._images(part))]

    def _train(self, settings: StageSettings, parameters: list[nn.Parameter], loss_of: StepLoss) -> None:
        optimizer = AdamW(
            parameters, lr=settings.learning_rate, betas=_BETAS, weight_decay=settings.weight_decay
        )
        if self.optimizer_state:
            checkpoints.restore_optimizer(optimizer, self.optimizer_state)
            self.optimizer_state = {}
        with _progress_line() as line:
            task = line.add_task(self.progress.stage, total=settings.steps, loss="")
            line.update(task, completed=self.progress.step)
            while self.progress.step < settings.steps:
                metrics = self._step(settings, parameters, optimizer, loss_of)
                line.update(task, completed=self.progress.step, loss=f"loss {metrics['loss']:.4f}")
                self._after_step(settings, optimizer, metrics)

    def _step(
        self,
        settings: StageSettings,
        parameters: list[nn.Parameter],
        optimizer: AdamW,
        loss_of: StepLoss,
    ) -> Metrics:
        started, step = time.monotonic(), self.progress.step
        first = settings is self.recipe.tokenization
        torch.manual_seed(self.recipe.seed * 2**32 + first * 2**31 + step)
        batch = torch.randint(len(self.pictures), (settings.batch_pictures,))
        rate = settings.learning_rate * _schedule(step, settings.warmup_steps, settings.steps)
        optimizer.param_groups[0]["lr"] = rate
        loss, metrics = loss_of(batch, step)
        if not loss.isfinite():
            raise DinaError(
                f"{self.progress.stage}: the loss is {loss.item()} at step {step}; lower learning_rate "
                f"({settings.learning_rate}) and run again"
            )
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started
        return {"loss": loss.item(), **metrics, "grad_norm": norm.item(), "learning_rate": rate}

    def _after_step(self, settings: StageSettings, optimizer: AdamW, metrics: Metrics) -> None:
        step, last = self.progress.step, self.progress.step == settings.steps
        if step % self.recipe.log_every == 0 or last:
            record = {"stage": self.progress.stage, "step": step, "seconds": round(self.progress.seconds, 2)}
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | metrics) + "\n")
        if step % self.recipe.save_every == 0 or last or self.interrupts.asked:
            recipe = self._comparable_recipe()
            checkpoints.save_checkpoint(self._checkpoint, self.progress, recipe, self.modules, optimizer)
        if self.interrupts.asked:
            raise KeyboardInterrupt(
                f"stopped after step {step} of {self.progress.stage}; run again to continue"
            )

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def _comparable_recipe(self) -> dict[str, Any]:
        """The recipe without what may change between a run and its continuation."""
        free = {"output_dir", "threads", "device", "resume", "save_dtype", "log_every", "save_every"}
        return json.loads(self.recipe.model_dump_json(exclude=free))

    def _resume(self) -> None:
        if self.recipe.resume and self._checkpoint.exists():
            self.progress, self.optimizer_state = checkpoints.load_checkpoint(
                self._checkpoint, self._comparable_recipe(), self.modules
            )
            return
        shutil.rmtree(self._checkpoint, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        (self.folder / "config.json").write_text(self.recipe.model_dump_json(indent=2), encoding="utf-8")

    def _finish(self) -> dict[str, Any]:
        """Saves the tokenizer, reads it back, and measures what was read."""
        final = self.folder / "final"
        dtype = getattr(torch, self.recipe.save_dtype)
        checkpoints.replace_folder(final, lambda folder: self.tokenizer.save_in(folder, dtype))
        tokenizer = DinaVisualTokenizer.from_pretrained(final).to(self.tokenizer.device)
        data = self.recipe.data
        pictures = self._load(data.eval or data.train, data.eval_count, self.recipe.seed + 1)
        images = [picture.to(tokenizer.device).float() / 255 for picture in pictures]
        save_contact_sheet(
            tokenizer, images[:_SHEET_PICTURES], self.folder / "samples" / "reconstructions.png"
        )
        figures = {
            "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
            "file_bytes": (final / "model.safetensors").stat().st_size,
            "train_seconds": round(self.progress.seconds, 1),
            **measure(tokenizer, images),
        }
        (self.folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        return figures


class _Interrupts:
    """Turns the first Ctrl-C into a wish to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupts:
        self._listening = threading.current_thread() is threading.main_thread()
        if self._listening:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listening:
            signal.signal(signal.SIGINT, self._before)


def _schedule(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate: linear up, cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _progress_line() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
