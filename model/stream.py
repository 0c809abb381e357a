"""The token stream: one sequence of positions that hold text tokens or the codes of image patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TokenStream:
    """A batch of streams. Shapes: ``B`` rows, ``T`` positions, ``L`` code levels, ``C = 1 + L`` channels.

    Attributes:
        text_ids: ``[B, T]`` int64. Image positions hold the image-pad id.
        codes: ``[B, T, L]`` int64, the codes of an image patch, -1 at every other position.
        attention_mask: ``[B, T]`` int64, 1 at real positions. Padding stands on the right, or (inside
            generation) on the left.
        actions: ``[B, T, C]`` bool, True where the policy itself sampled. Channel 0 is the text token,
            channel ``1 + l`` the code of level ``l``. Prompts and forced tokens are no actions.
    """

    text_ids: Tensor
    codes: Tensor
    attention_mask: Tensor
    actions: Tensor

    @property
    def batch_size(self) -> int:
        return self.text_ids.shape[0]

    @property
    def length(self) -> int:
        return self.text_ids.shape[1]

    @property
    def levels(self) -> int:
        return self.codes.shape[2]

    @property
    def position_ids(self) -> Tensor:
        """``[B, T]``: 0, 1, 2, … over the real positions of every row, whatever side the padding is on."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)

    def to(self, device: torch.device | str) -> TokenStream:
        return TokenStream(
            self.text_ids.to(device),
            self.codes.to(device),
            self.attention_mask.to(device),
            self.actions.to(device),
        )

    def select(self, rows: Tensor | Sequence[int] | slice) -> TokenStream:
        """The given rows, padding kept."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows, device=self.text_ids.device)
        return TokenStream(
            self.text_ids[rows], self.codes[rows], self.attention_mask[rows], self.actions[rows]
        )

    def row(self, index: int) -> TokenStream:
        """Row ``index`` alone (``B = 1``) without its padding."""
        real = self.attention_mask[index].bool()
        return TokenStream(
            self.text_ids[index, real][None],
            self.codes[index, real][None],
            self.attention_mask[index, real][None],
            self.actions[index, real][None],
        )

    def after(self, start: int) -> TokenStream:
        """The positions from ``start`` on."""
        return TokenStream(
            self.text_ids[:, start:],
            self.codes[:, start:],
            self.attention_mask[:, start:],
            self.actions[:, start:],
        )

    def before(self, end: int) -> TokenStream:
        """The positions up to ``end``, without it."""
        return TokenStream(
            self.text_ids[:, :end], self.codes[:, :end], self.attention_mask[:, :end], self.actions[:, :end]
        )

    @classmethod
    def from_prompt(cls, text_ids: Sequence[int], codes: Tensor) -> TokenStream:
        """A single row without actions. ``codes``: ``[T, L]``."""
        ids = torch.tensor([list(text_ids)], dtype=torch.long)
        return cls(
            text_ids=ids,
            codes=codes[None].long(),
            attention_mask=torch.ones_like(ids),
            actions=torch.zeros(1, ids.shape[1], 1 + codes.shape[1], dtype=torch.bool),
        )

    @classmethod
    def collate(cls, streams: Sequence[TokenStream], pad_id: int, left: bool = False) -> TokenStream:
        """Stacks unpadded single-row streams, padded to the longest one on the right (or the left)."""
        length = max(stream.length for stream in streams)
        return cls(
            text_ids=_stack([s.text_ids[0] for s in streams], length, pad_id, left),
            codes=_stack([s.codes[0] for s in streams], length, -1, left),
            attention_mask=_stack([s.attention_mask[0] for s in streams], length, 0, left),
            actions=_stack([s.actions[0] for s in streams], length, False, left),
        )


def pad_rows(rows: Sequence[Tensor], value: float, left: bool = False) -> Tensor:
    """Stacks ``[T_i, …]`` tensors to ``[B, max T, …]``, filled with ``value``."""
    return _stack(rows, max(row.shape[0] for row in rows), value, left)


def _stack(rows: Sequence[Tensor], length: int, value: float, left: bool) -> Tensor:
    out = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), value)
    for target, row in zip(out, rows, strict=True):
        if left:
            target[length - row.shape[0] :] = row
        else:
            target[: row.shape[0]] = row
    return out
