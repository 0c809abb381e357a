"""The learner's weights and state on their way to the rollouts and to disk, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dina.errors import DinaError
from dina.model.checkpoint import save_checkpoint, save_policy
from dina.rl.learner.adapters import adapter_parameters, has_adapters, named_weights
from dina.rl.learner.training_state import load_training_state, save_training_state

if TYPE_CHECKING:
    from dina.rl.learner.learner import Learner

FOLDER, ADAPTERS, LAYOUT = "learner", "adapters.safetensors", "layout.json"


def whole_weights(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    """See ``Learner.weights``."""
    sharded = learner.config.learner.zero_stage == 3
    for name, parameters, value in named_weights(learner.model):
        with learner.updater.whole(parameters):
            if learner.ranks.rank == 0:
                # What was gathered for this moment would be overwritten.
                yield name, value().clone() if sharded else value()


def save(learner: Learner, folder: Path) -> None:
    """See ``Learner.save``.

    Below ``learner/``: ``layout.json`` (how the state was cut up), the adapters if there are any, and per rank
    a folder with the optimizer's state; a single ``rank_0`` where nothing is sharded.
    """
    state = {name: tensor.detach().cpu() for name, tensor in learner.weights()}
    own = folder / FOLDER
    adapters = _whole_adapters(learner)
    if learner.ranks.rank == 0:
        own.mkdir(parents=True, exist_ok=True)
        (own / LAYOUT).write_text(json.dumps(_layout(learner)), encoding="utf-8")
        if adapters:
            save_file(adapters, own / ADAPTERS)
        if learner.checkpoint is not None:
            save_checkpoint(learner.checkpoint, folder, state=state)
        else:
            save_policy(learner.model, folder, state=state)
    learner.ranks.wait()
    if learner.ranks.rank == _keeper(learner):
        mine = own / f"rank_{learner.ranks.rank}"
        mine.mkdir(exist_ok=True)
        scheduler, optimizer = learner.scheduler.state_dict(), learner.updater.state()
        save_training_state(mine, state={"scheduler": scheduler, "optimizer": optimizer})
    learner.ranks.wait()


def restore(learner: Learner, folder: Path) -> None:
    """See ``Learner.restore``."""
    own = folder / FOLDER
    try:
        saved = json.loads((own / LAYOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DinaError(f"{folder} holds no state of a learner to continue from ({error})") from error
    if saved != _layout(learner):
        raise DinaError(
            f"{folder} was written with {saved}, and the recipe now says {_layout(learner)}; set these keys of "
            "learner as they were, or start a new run from it (model.path)"
        )
    if has_adapters(learner.model):
        files = [own / ADAPTERS]
        targets = {name: [parameter] for name, parameter in adapter_parameters(learner.model).items()}
    else:
        files = sorted(folder.glob("model*.safetensors"))
        targets = {name: parameters for name, parameters, _ in named_weights(learner.model)}
    _read(learner, files, targets)
    state = load_training_state(own / f"rank_{_keeper(learner)}")
    learner.scheduler.load_state_dict(state["scheduler"])
    learner.updater.load_state(state["optimizer"])
    for group, rate in zip(learner.optimizer.param_groups, learner.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    learner.ranks.wait()


def _keeper(learner: Learner) -> int:
    """The rank whose folder holds this rank's optimizer state: without shards, all are equal."""
    return learner.ranks.rank if learner.config.learner.zero_stage else 0


def _layout(learner: Learner) -> dict[str, object]:
    settings = learner.config.learner
    lora = settings.lora.model_dump(mode="json") if settings.lora is not None else None
    # Without shards, the state does not depend on the number of ranks.
    ranks = settings.ranks if settings.zero_stage else None
    return {"zero_stage": settings.zero_stage, "ranks": ranks, "lora": lora}


def _whole_adapters(learner: Learner) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in adapter_parameters(learner.model).items():
        with learner.updater.whole([parameter]):
            tensors[name] = parameter.detach().cpu().clone()
    return tensors


@torch.no_grad()
def _read(learner: Learner, files: list[Path], targets: dict[str, list[nn.Parameter]]) -> None:
    """Fills the parameters from files, in the same order on all ranks; rank 0's values hold."""
    unread = dict(targets)
    try:
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    if name in unread:
                        (parameter,) = unread.pop(name)
                        with learner.updater.whole([parameter], write=True):
                            if learner.ranks.rank == 0 or learner.config.learner.zero_stage < 3:
                                parameter.data.copy_(tensors.get_tensor(name))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DinaError(f"the weights in {files[0].parent} cannot be read ({error})") from error
    if unread:
        raise DinaError(f"{len(unread)} weights are missing in the checkpoint, the first is {min(unread)}")
    learner.updater.weights_changed()
