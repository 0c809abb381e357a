"""A key-value cache that grows in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer as views into buffers with room for more positions.

    ``DynamicLayer`` copies everything at every step; on a CPU that copy takes longer than the model.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [_with_room(x, 0) for x in (key_states, value_states)]
            self.keys, self.values = (b[..., :0, :] for b in self.buffers)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self.buffers[0].shape[-2]:
            self.buffers = [_with_room(b, start, end) for b in self.buffers]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (b[..., :end, :] for b in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.keys.shape[-2]
        self.buffers = [b[indices] for b in self.buffers]
        self.keys, self.values = (b[..., :length, :] for b in self.buffers)


def _with_room(x: Tensor, length: int, needed: int = 0) -> Tensor:
    """A buffer of twice the needed positions, whose first ``length`` are those of ``x``."""
    out = x.new_empty(*x.shape[:-2], 2 * max(needed, x.shape[-2]), x.shape[-1])
    out[..., :length, :] = x[..., :length, :]
    return out


def roomy_cache() -> Cache:
    """An empty cache for any number of layers with full attention."""
    return Cache(layer_class_to_replicate=RoomyLayer)
