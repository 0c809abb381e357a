"""How the codes of an image patch become the input of the backbone (docs/format.md)."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN


class GatedMLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.act = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class PreBuffer(nn.Module):
    """Re-encodes the summed level embeddings: ``u + MLP(LayerNorm(u))``."""

    def __init__(self, hidden_size: int, inner: int, activation: str, eps: float) -> None:
        super().__init__()
        self.pre_layernorm = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = GatedMLP(hidden_size, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.pre_layernorm(x))


class CodeEmbedding(nn.Module):
    """Global ids of codes, and the input embedding of an image position.

    The rows of all levels stand in the backbone's ``embed_tokens`` from ``visual_offset`` on, so the table
    is passed in and this module owns the pre-buffer alone.
    """

    def __init__(
        self,
        hidden_size: int,
        inner: int,
        codebook_sizes: list[int],
        visual_offset: int,
        activation: str = "silu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.pre_buffer = PreBuffer(hidden_size, inner, activation, eps)
        self.level_offsets = list(accumulate(codebook_sizes[:-1], initial=visual_offset))

    def global_ids(self, codes: Tensor) -> Tensor:
        """Local codes ``[..., L]`` to rows of ``embed_tokens``."""
        return codes + torch.tensor(self.level_offsets, device=codes.device)

    def embed_levels(self, codes: Tensor, table: nn.Embedding) -> Tensor:
        """``[..., L]`` codes to ``[..., L, H]``, the raw rows."""
        return table(self.global_ids(codes))

    def embed_level(self, codes: Tensor, level: int, table: nn.Embedding) -> Tensor:
        """Codes ``[...]`` of one level to ``[..., H]``."""
        return table(codes + self.level_offsets[level])

    def forward(self, codes: Tensor, table: nn.Embedding) -> Tensor:
        """``[N, L]`` codes to the input embeddings ``[N, H]`` of their positions."""
        return self.pre_buffer(self.embed_levels(codes, table).sum(-2))
