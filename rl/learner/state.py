"""The learner's weights and state on their way to the rollouts and to disk, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from dina.errors import DinaError
from dina.model.checkpoint import Checkpoint, save_checkpoint, save_policy
from dina.model.modeling import DinaForConditionalGeneration
from dina.rl.learner.adapters import adapter_parameters, has_adapters, named_weights
from dina.rl.learner.ranks import Ranks
from dina.rl.learner.training_state import load_training_state, save_training_state
from dina.rl.learner.updaters import Updater
from dina.rl.recipe.config import LearnerConfig

FOLDER, ADAPTERS, LAYOUT = "learner", "adapters.safetensors", "layout.json"


class LearnerState:
    """All of a learner that goes on after an update. Every rank makes the same calls.

    Args:
        settings: how the state is cut up.
        checkpoint: whose other parts ``save`` writes too; ``None`` writes the policy alone.
    """

    def __init__(
        self,
        model: DinaForConditionalGeneration,
        updater: Updater,
        scheduler: LRScheduler,
        ranks: Ranks,
        settings: LearnerConfig,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.model, self.updater, self.scheduler = model, updater, scheduler
        self.ranks, self.settings, self.checkpoint = ranks, settings, checkpoint

    def weights(self, everywhere: bool = False) -> Iterator[tuple[str, Tensor]]:
        """See ``Learner.weights``."""
        sharded = self.settings.zero_stage == 3
        for name, parameters, value in named_weights(self.model):
            with self.updater.whole(parameters):
                if everywhere or self.ranks.rank == 0:
                    # What was gathered for this moment would be overwritten.
                    yield name, value().clone() if sharded else value()

    def save(self, folder: Path) -> None:
        """See ``Learner.save``.

        Below ``learner/``: ``layout.json`` (how the state was cut up), the adapters if there are any, and per rank
        a folder with the optimizer's state; a single ``rank_0`` where nothing is sharded.
        """
        state = {name: tensor.detach().cpu() for name, tensor in self.weights()}
        own = folder / FOLDER
        adapters = self._whole_adapters()
        if self.ranks.rank == 0:
            own.mkdir(parents=True, exist_ok=True)
            (own / LAYOUT).write_text(json.dumps(self._layout()), encoding="utf-8")
            if adapters:
                save_file(adapters, own / ADAPTERS)
            if self.checkpoint is not None:
                save_checkpoint(self.checkpoint, folder, state=state)
            else:
                save_policy(self.model, folder, state=state)
        self.ranks.wait()
        if self.ranks.rank == self._keeper():
            mine = own / f"rank_{self.ranks.rank}"
            mine.mkdir(exist_ok=True)
            scheduler, optimizer = self.scheduler.state_dict(), self.updater.state()
            save_training_state(mine, {"scheduler": scheduler, "optimizer": optimizer})
        self.ranks.wait()

    def restore(self, folder: Path) -> None:
        """See ``Learner.restore``."""
        own = folder / FOLDER
        try:
            saved = json.loads((own / LAYOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DinaError(f"{folder} holds no state of a learner to continue from ({error})") from error
        if saved != self._layout():
            raise DinaError(
                f"{folder} was written with {saved}, and the recipe now says {self._layout()}; set these keys of "
                "learner as they were, or start a new run from it (model.path)"
            )
        if has_adapters(self.model):
            files = [own / ADAPTERS]
            targets = {name: [parameter] for name, parameter in adapter_parameters(self.model).items()}
        else:
            files = sorted(folder.glob("model*.safetensors"))
            targets = {name: parameters for name, parameters, _ in named_weights(self.model)}
        self._read(files, targets)
        state = load_training_state(own / f"rank_{self._keeper()}")
        self.scheduler.load_state_dict(state["scheduler"])
        self.updater.load_state(state["optimizer"])
        groups, rates = self.updater.optimizer.param_groups, self.scheduler.get_last_lr()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.ranks.wait()

    def _keeper(self) -> int:
        """The rank whose folder holds this rank's optimizer state: without shards, all are equal."""
        return self.ranks.rank if self.settings.zero_stage else 0

    def _layout(self) -> dict[str, object]:
        settings = self.settings
        lora = settings.lora.model_dump(mode="json") if settings.lora is not None else None
        # Without shards, the state does not depend on the number of ranks.
        ranks = settings.ranks if settings.zero_stage else None
        return {"zero_stage": settings.zero_stage, "ranks": ranks, "lora": lora}

    def _whole_adapters(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in adapter_parameters(self.model).items():
            with self.updater.whole([parameter]):
                tensors[name] = parameter.detach().cpu().clone()
        return tensors

    @torch.no_grad()
    def _read(self, files: list[Path], targets: dict[str, list[nn.Parameter]]) -> None:
        """Fills the parameters from files, in the same order on all ranks; rank 0's values hold."""
        unread = dict(targets)
        try:
            for file in files:
                with safe_open(file, framework="pt") as tensors:
                    for name in sorted(tensors.keys()):
                        if name in unread:
                            (parameter,) = unread.pop(name)
                            with self.updater.whole([parameter], write=True):
                                if self.ranks.rank == 0 or self.settings.zero_stage < 3:
                                    parameter.data.copy_(tensors.get_tensor(name))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DinaError(f"the weights in {files[0].parent} cannot be read ({error})") from error
        if unread:
            raise DinaError(
                f"{len(unread)} weights are missing in the checkpoint, the first is {min(unread)}"
            )
        self.updater.weights_changed()
