"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) through peft: put in, merged for the rollouts, saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dina.errors import DinaError
from dina.model.modeling import DinaForConditionalGeneration
from dina.rl.recipe.config import LoraSection

_NAME = "default"
# The model reads these weights without calling their modules, so an adapter there would do nothing.
_READ_DIRECTLY = ("embed_tokens", "lm_head", "linear1", "linear2")

NamedWeight = tuple[str, list[nn.Parameter], Callable[[], Tensor]]
"""A checkpoint's name, the parameters that the weight is made of, and how."""


def add_adapters(model: DinaForConditionalGeneration, lora: LoraSection, seed: int) -> None:
    """Puts adapters into the model, in place, and freezes everything else.

    Args:
        seed: of the adapters' first values, so that all ranks begin alike.

    Raises:
        DinaError: peft is not installed, no module has such a name, or an adapter there would do nothing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise DinaError("learner.lora needs peft: pip install 'dina-rl[lora]', or set it to null") from None
    fields = lora.model_dump()
    if lora.target_modules == "all-linear":
        fields["exclude_modules"] = [*(lora.exclude_modules or []), *_READ_DIRECTLY]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(LoraConfig(**fields), model, _NAME)
        except ValueError as error:
            raise DinaError(f"learner.lora does not fit the model: {error}") from None
    adapted = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    useless = [name for name in adapted if name.rsplit(".", 1)[-1] in _READ_DIRECTLY]
    if useless:
        raise DinaError(
            f"learner.lora.target_modules takes in {useless[0]}, whose weight the model reads directly, so that an "
            f"adapter would do nothing; leave out {', '.join(_READ_DIRECTLY)}"
        )
    model.eval()


def has_adapters(model: nn.Module) -> bool:
    return any(hasattr(module, "base_layer") for module in model.modules())


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What LoRA trains, by name."""
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def named_weights(model: nn.Module) -> Iterator[NamedWeight]:
    """Every weight of the model under its checkpoint's name, with the adapters merged in.

    The model itself is not touched: the sum is a tensor of its own.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, last = name.rpartition(".base_layer.")
        if not owner or last != "weight":
            plain = f"{owner}.{last}" if owner else name
            yield plain, [parameter], parameter.detach
        else:
            parts = [
                p for n, p in adapted[owner].named_parameters() if n == "base_layer.weight" or "lora_" in n
            ]
            yield f"{owner}.weight", parts, _Merged(adapted[owner])


class _Merged:
    """The adapted weight of one layer, computed when called."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    @torch.no_grad()
    def __call__(self) -> Tensor:
        base: Tensor = self.layer.base_layer.weight  # type: ignore[assignment, union-attr]
        delta: Tensor = self.layer.get_delta_weight(_NAME)  # type: ignore[operator]
        return base + delta.to(base.dtype)
