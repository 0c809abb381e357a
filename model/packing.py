"""Pictures of different sizes as one sequence: patch order, windows, and attention inside segments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns, in patches or in tokens as the name says."""


def patchify(image: Tensor, patch: int, merge: int, frames: int = 1) -> Tensor:
    """``[3, H, W]`` to ``[N, 3 * frames * patch * patch]``, patches in merge-block order (docs/format.md)."""
    channels, height, width = image.shape
    cell = patch * merge
    blocks = image.view(channels, height // cell, merge, patch, width // cell, merge, patch)
    patches = blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels, 1, patch, patch)
    return patches.expand(-1, -1, frames, -1, -1).flatten(1)


def unpatchify(patches: Tensor, tokens: Grid, patch: int, merge: int, frames: int = 1) -> Tensor:
    """Inverse of :func:`patchify` for a grid of tokens; the first frame is the picture (docs/format.md)."""
    rows, columns = tokens
    blocks = patches.view(rows, columns, merge, merge, -1, frames, patch, patch)[:, :, :, :, :, 0]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, rows * merge * patch, columns * merge * patch)


@lru_cache(maxsize=256)
def patch_positions(tokens: Grid, merge: int, raster: bool = False) -> Tensor:
    """``[N, 2]`` row and column of every patch, in merge-block order or (``raster``) in raster order."""
    rows, columns = tokens
    y, x = torch.meshgrid(torch.arange(rows * merge), torch.arange(columns * merge), indexing="ij")
    positions = torch.stack([y, x], -1)
    if not raster:
        positions = positions.view(rows, merge, columns, merge, 2).transpose(1, 2)
    return positions.reshape(-1, 2)


@lru_cache(maxsize=256)
def window_order(grids: tuple[Grid, ...], window: int) -> tuple[Tensor, tuple[int, ...]]:
    """Order that makes the tokens of each window neighbours.

    Args:
        grids: rows and columns of every picture, in tokens.
        window: side of a window in tokens.

    Returns:
        ``index [N]`` of the tokens in window order, and the number of tokens of every window.
    """
    indexes, lengths, start = [], [], 0
    for rows, columns in grids:
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        ids = (y // window * (columns // window + 1) + x // window).flatten()
        indexes.append(ids.argsort(stable=True) + start)
        lengths.extend(ids.unique(return_counts=True)[1].tolist())
        start += rows * columns
    return torch.cat(indexes), tuple(lengths)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Attention ``[N, heads, head_dim]`` in which every position sees its own segment alone.

    Segments of equal length share one kernel call, so nothing is padded and no mask is built.
    """
    if len(set(lengths)) == 1:
        return _attend(q, k, v, lengths[0], scale)
    starts: dict[int, list[int]] = defaultdict(list)
    start = 0
    for length in lengths:
        starts[length].append(start)
        start += length
    out = torch.empty_like(q)
    pieces, places = [], []
    for length, firsts in starts.items():
        rows = (torch.tensor(firsts)[:, None] + torch.arange(length)).flatten().to(q.device)
        pieces.append(_attend(q[rows], k[rows], v[rows], length, scale))
        places.append(rows)
    return out.index_copy(0, torch.cat(places), torch.cat(pieces))


def _attend(q: Tensor, k: Tensor, v: Tensor, length: int, scale: float) -> Tensor:
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)
