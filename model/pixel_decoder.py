"""Pixel decoder: a ViT from summed code vectors to pictures (paper §2.2.4, docs/format.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dina.model.packing import Grid, packed_attention, patch_positions, unpatchify
from dina.model.vision_config import DinaPixelDecoderConfig, DinaVisionConfig


class PatchUnmerger(nn.Module):
    """One token to its ``merge**2`` patches."""

    def __init__(self, width: int, merge: int, eps: float) -> None:
        super().__init__()
        joined = width * merge**2
        self.ln_q = nn.RMSNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, joined), nn.GELU(), nn.Linear(joined, joined))

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, D]`` to ``[tokens * merge**2, D]``."""
        return self.mlp(self.ln_q(x)).view(-1, x.shape[-1])


class DecoderAttention(nn.Module):
    def __init__(self, config: DinaPixelDecoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        head_dim = width // self.heads
        self.scale = head_dim**-0.5 if config.attention_scale == "once" else 1.0 / head_dim
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.inner_attn_ln = nn.RMSNorm(width, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate_pairs(q, angles), _rotate_pairs(k, angles)
        mixed = packed_attention(q, k, v, lengths, self.scale)
        return self.out_proj(self.inner_attn_ln(mixed.flatten(1)))


class DecoderMLP(nn.Module):
    def __init__(self, config: DinaPixelDecoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.ffn_ln = nn.RMSNorm(inner, eps=config.layer_norm_eps)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: DinaPixelDecoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm2 = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = DecoderAttention(config)
        self.mlp = DecoderMLP(config)

    def forward(self, x: Tensor, angles: Tensor, lengths: Sequence[int]) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), angles, lengths)
        return x + self.mlp(self.layer_norm2(x))


class DecoderStack(nn.Module):
    def __init__(self, config: DinaPixelDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, angles: Tensor, lengths: Sequence[int]) -> Tensor:
        for layer in self.layers:
            x = layer(x, angles, lengths)
        return x


class PixelDecoder(nn.Module):
    """Code vectors of several pictures in one packed sequence to their pixels."""

    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__()
        self.vision = config
        decoder = config.decoder
        self.config = decoder
        width, eps = decoder.hidden_size, decoder.layer_norm_eps
        self.post_quant_conv = nn.Linear(config.quantizer.codebook_dim, width)
        self.post_quant_norm = nn.RMSNorm(width, eps=eps)
        self.patch_unmerger = PatchUnmerger(width, config.spatial_merge_size, config.rms_norm_eps)
        self.norm_in = nn.RMSNorm(width, eps=eps)
        self.encoder = DecoderStack(decoder)
        self.norm_out = nn.RMSNorm(width, eps=eps)
        self.decoder_head = nn.Sequential(
            nn.Linear(width, decoder.intermediate_size),
            nn.GELU(),
            nn.Linear(decoder.intermediate_size, config.patch_values),
        )

    def forward(self, vectors: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Predicts normalised pixels.

        Args:
            vectors: ``[tokens, codebook_dim]`` sums of code vectors, raster order, pictures one after another.
            grids: rows and columns of every picture, in tokens.

        Returns:
            ``[tokens * merge**2, P]`` patches in merge-block order.
        """
        merge = self.vision.spatial_merge_size
        raster = self.config.rope_positions == "raster"
        positions = torch.cat([patch_positions(grid, merge, raster) for grid in grids]).to(vectors.device)
        angles = self._angles(positions)
        lengths = [rows * columns * merge**2 for rows, columns in grids]
        x = self.post_quant_norm(self.post_quant_conv(vectors.to(self.post_quant_conv.weight.dtype)))
        x = self.norm_in(self.patch_unmerger(x))
        return self.decoder_head(self.norm_out(self.encoder(x, angles, lengths)))

    def fold(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Patches to pictures ``[3, H, W]``, still normalised."""
        merge = self.vision.spatial_merge_size
        pieces = patches.split([rows * columns * merge**2 for rows, columns in grids])
        size, frames = self.vision.patch_size, self.vision.temporal_patch_size
        return [
            unpatchify(piece, grid, size, merge, frames) for piece, grid in zip(pieces, grids, strict=True)
        ]

    def _angles(self, positions: Tensor) -> Tensor:
        """``[N, head_dim / 2]``: the first half of a head turns with the row, the second with the column."""
        quarter = self.config.hidden_size // self.config.num_attention_heads // 4
        steps = torch.arange(quarter, dtype=torch.float32, device=positions.device) / quarter
        return (positions[:, :, None] * self.config.rope_theta**-steps).flatten(1)


def _rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates ``x [N, heads, hd]`` by ``angles [N, hd / 2]``, pairing neighbouring channels."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
