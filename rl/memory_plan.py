"""How much memory each device of a run needs, from the recipe and the model's ``config.json`` alone.

Weights, gradients and optimizer states are exact. Activations are an estimate, some 10 % low under autocast. What a
framework itself takes (CUDA context, NCCL buffers, fragmentation) is not counted; leave some GiB per GPU for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dina.model.config import DinaConfig
from dina.model.modeling import LIKELIHOOD_BUDGET
from dina.rl.model_sizes import activation_bytes, kv_elements, model_sizes
from dina.rl.recipe.config import TrainConfig
from dina.rollout.vllm_start import read_config

Rows = list[tuple[str, str]]
_CHUNK_COPIES = 3  # logits, log-probabilities and their exponentials
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Item:
    """One use of a device's memory, and how it comes about."""

    name: str
    bytes: float
    calculation: str


def memory_rows(config: TrainConfig) -> Rows:
    """The plan of a settled recipe as rows (quantity, calculation) for ``--dry-run``.

    Raises:
        DinaError: the model's ``config.json`` is broken, or ``learner.lora`` does not fit the model.
    """
    if not (Path(config.model.path) / "config.json").is_file():
        return [("memory", f"not computed: {config.model.path} has no config.json")]
    return MemoryPlan(config).rows()


class MemoryPlan:
    """The memory of a recipe's devices.

    Args:
        config: settled (``dina.rl.runtime.settle``).

    Raises:
        DinaError: ``model.path`` has no readable ``config.json``.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        folder = Path(config.model.path)
        self.sizes = model_sizes(folder, config.learner.lora)
        self.model_config = read_config(folder)
        self.text: Any = self.model_config.text_config
        self.width = _BYTES[config.run.dtype]  # of an activation
        self.longest, self.longest_why = longest_sequence(config, self.model_config)

    def learner(self) -> list[Item]:
        """One rank."""
        sizes, learner = self.sizes, self.config.learner
        ranks = learner.ranks
        items = [
            self._sharded("weights", 4, sizes.policy, learner.zero_stage == 3),
            self._sharded("gradients", 4, sizes.trained, learner.zero_stage > 0),
            self._sharded("Adam's moments", 8, sizes.trained, learner.zero_stage > 0),
        ]
        if learner.zero_stage:
            items.append(self._sharded("DeepSpeed's copy", 4, sizes.trained, True))
        moment = sizes.outside + sizes.largest
        if learner.zero_stage == 3 and ranks > 1:
            trained = sizes.trained == sizes.policy
            each = 8 if trained else 4
            what = "weights and gradients" if trained else "weights"
            items.append(
                Item(
                    "gathered for a pass",
                    each * moment,
                    f"{each} B ({what}) × {_number(moment)} (one layer, all outside the layers)",
                )
            )
        if self.config.run.dtype == "bfloat16":
            copied = moment if learner.gradient_checkpointing else sizes.policy
            which = "one layer, all outside the layers" if learner.gradient_checkpointing else "whole pass"
            items.append(Item("autocast's copies", 2 * copied, f"2 B × {_number(copied)} ({which})"))
        if self.config.algorithm.beta > 0:
            items.append(Item("reference policy", 4 * sizes.policy, f"4 B × {_number(sizes.policy)}"))
        return [*items, self._activations(), self._likelihood()]

    def rollout(self) -> list[Item]:
        """One GPU of an engine (or its process on a CPU)."""
        sizes, rollout = self.sizes, self.config.rollout
        each = self.width if rollout.engine == "vllm" else 4
        gpus = rollout.tensor_parallel
        share = f" / {gpus} GPUs" if gpus > 1 else ""
        items = []
        if self.config.rl.runner != "local":
            weights = sizes.layers / gpus + sizes.outside
            split = f"({_number(sizes.layers)}{share} + {_number(sizes.outside)})"
            items.append(Item("weights", each * weights, f"{each} B × {split}"))
        if sizes.vision:
            items.append(Item("visual tokenizer", 4 * sizes.vision, f"4 B × {_number(sizes.vision)}"))
        latent = rollout.engine == "vllm" and hasattr(self.text, "kv_lora_rank")
        cached = self.width * kv_elements(self.text, latent)
        rows = rollout.batch_size * (2 if rollout.guidance_scale != 1 else 1)
        positions = rows * self.longest
        # Heads are split over GPUs; a latent that all heads share is not.
        held = cached * positions / (1 if latent else gpus)
        calculation = f"{cached / 1024:.4g} KiB × {rows} sequences × {self.longest} positions"
        items.append(Item("keys and values", held, calculation + ("" if latent else share)))
        return items

    def rows(self) -> Rows:
        """For ``--dry-run``: (quantity, calculation)."""
        return [*self._model_rows(), *self._role_rows(), *self._device_rows()]

    def _sharded(self, name: str, each: int, count: int, sharded: bool) -> Item:
        ranks = self.config.learner.ranks if sharded else 1
        share = f" / {ranks} ranks" if ranks > 1 else ""
        return Item(name, each * count / ranks, f"{each} B × {_number(count)}{share}")

    def _activations(self) -> Item:
        learner, text = self.config.learner, self.text
        rows = self.config.optim.micro_batch_size
        positions, layers = rows * self.longest, self.sizes.count
        layer = activation_bytes(text, self.width)
        shown = f"{rows} sequences × {self.longest} positions"
        if learner.gradient_checkpointing:
            kept = 4 * text.hidden_size  # the residual stream stays float32 under autocast
            return Item(
                "activations",
                positions * (kept * layers + layer),
                f"{shown} × ({kept / 1024:.4g} KiB × {layers} layers + {layer / 1024:.4g} KiB for the one recomputed)",
            )
        return Item(
            "activations", positions * layer * layers, f"{shown} × {layer / 1024:.4g} KiB × {layers} layers"
        )

    def _likelihood(self) -> Item:
        """Logits of one chunk of positions; the chunks are recomputed backward, so that one is held at a time."""
        config = self.model_config
        classes = max(config.text_vocab_plus_multimodal_special_token_size, sum(config.codebook_sizes))
        rows = min(self.config.optim.micro_batch_size * self.longest, max(1, LIKELIHOOD_BUDGET // classes))
        return Item(
            "logits",
            4 * _CHUNK_COPIES * rows * classes,
            f"4 B × {_CHUNK_COPIES} × {rows} positions × {classes} classes",
        )

    def _model_rows(self) -> Rows:
        sizes = self.sizes
        rows = [
            (
                "policy",
                f"{_number(sizes.policy)} weights: {_number(sizes.layers)} in {sizes.count} layers, "
                f"{_number(sizes.outside)} outside them; {_number(sizes.trained)} trained",
            ),
            ("longest sequence", f"{self.longest} positions: {self.longest_why}"),
        ]
        if sizes.absent:
            rows.append(
                (
                    "not counted",
                    f"n-gram tables of {_number(sizes.absent)} weights ({_size(2 * sizes.absent)} in bfloat16), which "
                    "the model class does not have yet",
                )
            )
        return rows

    def _role_rows(self) -> Rows:
        config = self.config
        roles = {"learner rank" if config.rl.runner != "local" else "learning": self.learner()}
        roles["rollout worker" if config.rl.runner != "local" else "drawing"] = self.rollout()
        rows: Rows = []
        for role, items in roles.items():
            rows += [(f"{role}: {item.name}", f"{item.calculation} = {_size(item.bytes)}") for item in items]
        return rows

    def _device_rows(self) -> Rows:
        """What stands on each device; a reward's own model is unknown here."""
        config = self.config
        learner, rollout = (sum(item.bytes for item in items) for items in (self.learner(), self.rollout()))
        if config.rl.runner == "local":
            return [
                ("memory of the process", f"{_size(learner)} + {_size(rollout)} = {_size(learner + rollout)}")
            ]
        ranks, workers = config.learner.ranks, config.ray.rollout.workers
        drawing = workers * config.rollout.tensor_parallel
        rows = [("memory per learner rank", _size(learner)), ("memory per rollout GPU", _size(rollout))]
        if config.ray.placement == "colocated":
            both = f"{_size(learner)} + {_size(rollout)} = {_size(learner + rollout)}"
            rows.append(("memory per device, colocated", f"{min(ranks, drawing)} × ({both})"))
        else:
            rows.append(("devices, separate", f"{ranks} × {_size(learner)}, {drawing} × {_size(rollout)}"))
        sent, store = 4 * self.sizes.policy, config.ray.object_store_mb * 2**20
        advice = "" if store > 2 * sent else f"; raise ray.object_store_mb (now {config.ray.object_store_mb})"
        versions = f"2 versions × 4 B × {_number(self.sizes.policy)} = {_size(2 * sent)}{advice}"
        return [*rows, ("object store for weight sync", versions)]


def longest_sequence(config: TrainConfig, model: DinaConfig) -> tuple[int, str]:
    """Positions of the longest sequence that the recipe allows, and what bounds it."""
    text: Any = model.text_config
    limit = int(text.max_position_embeddings)
    prompt, grid, answer = (
        config.data.max_prompt_length,
        config.data.grid,
        config.rollout.max_completion_length,
    )
    if prompt is None or grid is None:
        return limit, "the context; data.max_prompt_length and data.grid together would bound it"
    picture = grid[0] * (grid[1] + 1) + 2
    drawn = max(picture, answer)
    why = f"data.max_prompt_length {prompt} + {drawn} for a picture of {grid[0]}×{grid[1]}, its newlines and ends"
    if answer > picture:
        why = f"data.max_prompt_length {prompt} + rollout.max_completion_length {answer}"
    return min(limit, prompt + drawn), why


def _number(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:,.0f}"


def _size(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"
