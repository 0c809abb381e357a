"""A sampler that differs from the actor in a controlled way, to study what the mismatch does to training.

Three faults that real engines have: weights rounded to bfloat16 or int8, weights of some updates ago, and the rare
action that the actor finds almost impossible while the sampler reports a high probability (LongCat-Next, section 9.1).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dina.model.checkpoint import Checkpoint
from dina.model.sampling import counter_gumbel
from dina.rollout.torch_engine import TorchEngine

_IMPROBABLE = 1e-3
_WHETHER, _WHICH = 0x5EED_F11B, 0x5EED_C1A5  # other random numbers than those that samples are drawn with


@dataclass(frozen=True)
class Faults:
    """What is wrong.

    Attributes:
        precision: weights are rounded; ``int8`` rounds linear layers per row and everything else to bfloat16.
        stale: updates by which the weights are behind.
        flip_rate: share of actions whose distribution is falsified.
        flip_probability: what an improbable class then has in it, and is reported with.
    """

    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    stale: int = 0
    flip_rate: float = 0.0
    flip_probability: float = 0.9


class FaultyEngine(TorchEngine):
    """The torch engine on a copy of a checkpoint's model. Samples carry the version of the weights that drew them.

    A run that is resumed begins again with fresh weights: the old ones are not saved.
    """

    def __init__(
        self, checkpoint: Checkpoint, faults: Faults, batch_size: int = 64, dtype: str = "float32"
    ) -> None:
        own = Checkpoint(copy.deepcopy(checkpoint.model), checkpoint.processor, checkpoint.visual_tokenizer)
        super().__init__(own, batch_size, dtype, self._flip if faults.flip_rate else None)
        self.faults = faults
        self._history: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=faults.stale + 1)
        self._linear = {
            f"{name}.weight" for name, module in self.model.named_modules() if isinstance(module, nn.Linear)
        }
        self.update_weights(checkpoint.model.named_parameters(), 0)

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes the weights in, and computes with those of ``stale`` updates ago, rounded."""
        self._history.append((version, {name: tensor.detach().clone() for name, tensor in tensors}))
        old, weights = self._history[0]
        super().update_weights(((name, self._rounded(name, tensor)) for name, tensor in weights.items()), old)

    def _rounded(self, name: str, weight: Tensor) -> Tensor:
        if self.faults.precision == "float32":
            return weight
        if self.faults.precision == "int8" and name in self._linear:
            return round_to_int8(weight)
        return weight.bfloat16().to(weight.dtype)

    def _flip(self, log_probs: Tensor, seeds: Tensor, positions: Tensor, channel: int) -> Tensor:
        return flip(log_probs, seeds, positions, channel, self.faults.flip_rate, self.faults.flip_probability)


def round_to_int8(weight: Tensor) -> Tensor:
    """``[out, in]`` rounded to 255 levels per row, symmetric about 0, as engines store linear layers."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round() * scale


def flip(
    log_probs: Tensor, seeds: Tensor, positions: Tensor, channel: int, rate: float, probability: float
) -> Tensor:
    """In a share ``rate`` of the rows, gives a random improbable class ``probability``, and the others the rest.

    Improbable is below 1e-3. Which rows and classes depends on seed, position and channel alone.

    Args:
        log_probs: ``[N, K]``. seeds, positions: ``[N]`` int64.
    """
    # A Gumbel variable g is below its quantile u with probability u.
    uniform = (-(-counter_gumbel(seeds ^ _WHETHER, positions, channel, 1)).exp()).exp()
    chosen = (uniform[:, 0] < rate).nonzero().flatten()
    if not len(chosen):
        return log_probs
    mine = log_probs[chosen]
    noise = counter_gumbel(seeds[chosen] ^ _WHICH, positions[chosen], channel, mine.shape[1])
    improbable = mine.exp() < _IMPROBABLE
    target = noise.masked_fill(~improbable, -torch.inf).argmax(1)
    target = torch.where(improbable.any(1), target, mine.argmin(1))
    falsified = mine.exp() * (1 - probability)
    falsified[torch.arange(len(chosen)), target] += probability
    return log_probs.index_copy(0, chosen, falsified.log())
