"""Statistics that can be merged exactly: over micro-batches, minibatches and processes."""

from __future__ import annotations

import torch
from torch import Tensor


def channel_name(channel: int) -> str:
    """The prefix of a channel's metrics: ``text`` for channel 0, ``level_<l>`` for channel ``1 + l``."""
    return "text" if channel == 0 else f"level_{channel - 1}"


class StatSums:
    """Named means, minima and maxima, kept as float64 sums and counts until they are read.

    A mean of means would weigh a short micro-batch as much as a long one. Merging sums and counts gives
    the numbers that one pass over all data would have given. Nothing here carries gradients.

    Attributes:
        sums: name -> ``[2]`` float64, (sum, count).
        minima: name -> scalar float64, ``+inf`` where there was no value.
        maxima: name -> scalar float64, ``-inf`` where there was no value.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.minima: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Mean of ``values`` over ``mask`` (same shape). Values outside of the mask may be anything."""
        total = values.detach().double().masked_fill(~mask, 0.0).sum()
        self.add_sum(name, total, mask.sum())

    def add_sum(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """A mean given as its sum and its count."""
        device = total.device if isinstance(total, Tensor) else None
        pair = torch.stack(
            [torch.as_tensor(x, dtype=torch.float64, device=device).detach() for x in (total, count)]
        )
        known = self.sums.get(name)
        self.sums[name] = pair if known is None else known + pair.to(known.device)

    def add_max(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Largest of ``values`` over ``mask``."""
        if values.numel():
            largest = values.detach().double().masked_fill(~mask, -torch.inf).max()
            known = self.maxima.get(name)
            self.maxima[name] = largest if known is None else torch.maximum(known, largest.to(known.device))

    def add_min(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Smallest of ``values`` over ``mask``."""
        if values.numel():
            smallest = values.detach().double().masked_fill(~mask, torch.inf).min()
            known = self.minima.get(name)
            self.minima[name] = smallest if known is None else torch.minimum(known, smallest.to(known.device))

    def merge(self, other: StatSums) -> StatSums:
        """Adds ``other`` to this one, and returns this one."""
        for name, (total, count) in other.sums.items():
            self.add_sum(name, total, count)
        for name, value in other.maxima.items():
            self.add_max(name, value, torch.ones_like(value, dtype=torch.bool))
        for name, value in other.minima.items():
            self.add_min(name, value, torch.ones_like(value, dtype=torch.bool))
        return self

    def cpu(self) -> StatSums:
        """The same numbers on the CPU."""
        moved = StatSums()
        moved.sums = {name: pair.cpu() for name, pair in self.sums.items()}
        moved.minima = {name: value.cpu() for name, value in self.minima.items()}
        moved.maxima = {name: value.cpu() for name, value in self.maxima.items()}
        return moved

    def compute(self) -> dict[str, float]:
        """Plain numbers by name. A name that nothing was counted for is left out, so no value is ever NaN
        for want of data."""
        numbers = {name: float(total / count) for name, (total, count) in self.sums.items() if count > 0}
        for extremes in (self.minima, self.maxima):
            numbers |= {name: float(value) for name, value in extremes.items() if value.isfinite()}
        return dict(sorted(numbers.items()))
