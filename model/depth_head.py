"""The depth head: a small causal transformer over the code levels of one position (docs/format.md)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadRMSNorm(nn.Module):
    """T5-style RMSNorm: variance in float32, weight only."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.float() * scale).to(x.dtype)


class SlotAttention(nn.Module):
    """Causal attention over the slots of a position: no positional encoding, ``k_proj`` without bias."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.heads = width // head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """``x``: ``[N, S, D]`` all slots, or the newest slot alone with the keys and values before it in ``cache``."""
        q, k, v = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
            cache[:] = [k, v]
        return self.out_proj(self._attend(q, k, v).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # A handful of slots: plain matmuls beat a fused kernel, forward and backward.
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5
        if q.shape[1] > 1:
            future = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1, dtype=torch.float32).to(v.dtype), v)


class DepthLayer(nn.Module):
    """Pre-norm block whose feed-forward weights are slices of one matrix pair, one slice per level.

    With ``F = ffn_scale * D / L``: level ``l`` takes the rows ``t * L + l`` of ``linear1`` and the columns
    ``l * F + t`` of ``linear2``. The checkpoint stores biases for both; the reference never applies them.
    """

    def __init__(
        self, width: int, levels: int, ffn_scale: int, head_dim: int, eps: float, unused_bias: bool
    ) -> None:
        super().__init__()
        self.levels = levels
        self.self_attention = SlotAttention(width, head_dim)
        self.layernorm1 = HeadRMSNorm(width, eps)
        self.layernorm2 = HeadRMSNorm(width, eps)
        self.linear1 = nn.Linear(width, ffn_scale * width, bias=unused_bias)
        self.linear2 = nn.Linear(ffn_scale * width, width, bias=unused_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, L, D]``."""
        x = x + self.self_attention(self.layernorm1(x))
        up, down = self._level_weights()
        inner = F.gelu(torch.bmm(self.layernorm2(x).transpose(0, 1), up))
        return x + torch.bmm(inner, down).transpose(0, 1)

    def step(self, x: Tensor, level: int, cache: list[Tensor]) -> Tensor:
        """One slot: ``[N, 1, D]`` at ``level``."""
        x = x + self.self_attention(self.layernorm1(x), cache)
        up, down = self._level_weights()
        return x + F.gelu(self.layernorm2(x) @ up[level]) @ down[level]

    def _level_weights(self) -> tuple[Tensor, Tensor]:
        """``[L, D, F]`` and ``[L, F, D]``."""
        width = self.linear1.in_features
        up = self.linear1.weight.view(-1, self.levels, width).permute(1, 2, 0)
        down = self.linear2.weight.view(width, self.levels, -1).permute(1, 2, 0)
        return up, down


class DepthHead(nn.Module):
    """Predicts the ``L`` codes of a position, level by level, from the backbone's hidden state.

    Slot 0 sees the hidden state, slot ``l > 0`` the sum of the embeddings of the codes before level ``l``.
    Every level has one class more than its codebook (the last: "end of image"), which sampling masks.

    Args:
        hidden_size: width ``H`` of the backbone.
        width: inner width ``D``, a multiple of ``head_dim`` and of the number of levels.
        num_layers: transformer layers.
        ffn_scale: inner width of the feed-forward pair over all levels, in units of ``D``.
        codebook_sizes: ``L`` numbers.
        head_dim: width of an attention head (128 in LongCat-Next).
        eps: of every RMSNorm.
        unused_bias: create the biases that the reference stores and never applies.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int,
        num_layers: int,
        ffn_scale: int,
        codebook_sizes: list[int],
        head_dim: int = 128,
        eps: float = 1e-6,
        unused_bias: bool = False,
    ) -> None:
        super().__init__()
        if width % head_dim or (ffn_scale * width) % len(codebook_sizes):
            raise ValueError(
                f"depth head: width {width} must be a multiple of head_dim {head_dim}, and ffn_scale*width "
                f"({ffn_scale * width}) a multiple of the {len(codebook_sizes)} levels"
            )
        self.codebook_sizes = list(codebook_sizes)
        self.hidden_norm = HeadRMSNorm(hidden_size, eps)
        self.hidden_proj = nn.Linear(hidden_size, width, bias=False)
        self.transformer_layers = nn.ModuleList(
            DepthLayer(width, len(codebook_sizes), ffn_scale, head_dim, eps, unused_bias)
            for _ in range(num_layers)
        )
        self.headnorm = HeadRMSNorm(width, eps)
        self.heads = nn.ModuleList(nn.Linear(width, size + 1) for size in codebook_sizes)

    @property
    def levels(self) -> int:
        return len(self.codebook_sizes)

    def forward(self, hidden: Tensor, code_embeddings: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every level.

        Args:
            hidden: ``[N, H]``, after the backbone's final norm.
            code_embeddings: ``[N, L, H]`` embeddings of the codes; the last level's is not used.

        Returns:
            ``L`` tensors ``[N, C_l + 1]``.
        """
        slots = torch.cat([hidden[:, None], code_embeddings[:, :-1].cumsum(1)], 1)
        x = self.hidden_proj(self.hidden_norm(slots))
        for layer in self.transformer_layers:
            x = layer(x)
        x = self.headnorm(x)
        return [head(x[:, level]) for level, head in enumerate(self.heads)]

    def sample(
        self,
        hidden: Tensor,
        embed_level: Callable[[Tensor, int], Tensor],
        choose: Callable[[Tensor, int], Tensor],
    ) -> Tensor:
        """Draws the codes of each row, level by level, with keys and values kept between levels.

        Args:
            hidden: ``[N, H]``.
            embed_level: maps codes ``[N]`` of a level to their embeddings ``[N, H]``.
            choose: maps the logits ``[N, C_l + 1]`` of a level to codes ``[N]``.

        Returns:
            codes ``[N, L]``.
        """
        caches: list[list[Tensor]] = [[] for _ in self.transformer_layers]
        codes: list[Tensor] = []
        slot, prefix = hidden, torch.zeros_like(hidden)
        for level, head in enumerate(self.heads):
            x = self.hidden_proj(self.hidden_norm(slot))[:, None]
            for layer, cache in zip(self.transformer_layers, caches, strict=True):
                x = layer.step(x, level, cache)
            codes.append(choose(head(self.headnorm(x))[:, 0], level))
            prefix = prefix + embed_level(codes[-1], level)
            slot = prefix
        return torch.stack(codes, 1)
