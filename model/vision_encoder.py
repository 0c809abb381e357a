"""Native-resolution vision encoder and the bridge to the quantiser (docs/format.md).

Pictures of any sizes form one packed sequence of patches. The built-in encoder ``dina_vit`` is computed
like Qwen2.5-VL's vision transformer and uses its tensor names; others are added with
:func:`register_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dina.errors import DinaError
from dina.model.packing import Grid, packed_attention, patch_positions, window_order
from dina.model.vision_config import DinaVisionConfig

EncoderFactory = Callable[[DinaVisionConfig], nn.Module]
_Factory = TypeVar("_Factory", bound=EncoderFactory)
_ENCODERS: dict[str, EncoderFactory] = {}


def register_encoder(name: str) -> Callable[[_Factory], _Factory]:
    """Adds an encoder under the name that ``DinaVisionConfig.encoder_type`` selects.

    The factory makes a module whose ``forward(patches [N, P], grids)`` returns hidden states
    ``[N, hidden_size]`` and the order ``[N / merge**2]`` of their merged tokens.
    """

    def add(factory: _Factory) -> _Factory:
        _ENCODERS[name] = factory
        return factory

    return add


def build_encoder(config: DinaVisionConfig) -> nn.Module:
    if config.encoder_type not in _ENCODERS:
        known = ", ".join(sorted(_ENCODERS))
        raise DinaError(f"encoder_type {config.encoder_type!r} is not known; there are: {known}")
    return _ENCODERS[config.encoder_type](config)


class PatchEmbed(nn.Module):
    """A convolution whose kernel is one whole patch, applied to patches that are already cut out."""

    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1))


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        q, k = _rotate_halves(q, angles), _rotate_halves(k, angles)
        return self.proj(packed_attention(q, k, v, lengths, q.shape[-1] ** -0.5).flatten(1))


class VisionMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner)
        self.up_proj = nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class VisionBlock(nn.Module):
    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm2 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = VisionAttention(config.hidden_size, config.num_heads)
        self.mlp = VisionMLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, angles: Tensor, lengths: Sequence[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), angles, lengths)
        return x + self.mlp(self.norm2(x))


@register_encoder("dina_vit")
class DinaVisionTransformer(nn.Module):
    """ViT with 2-D RoPE and attention within windows or whole pictures, at any depth (0 included)."""

    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """Encodes a packed sequence.

        Args:
            patches: ``[N, P]`` normalised pixels, each picture in merge-block order.
            grids: rows and columns of every picture, in tokens.

        Returns:
            hidden states ``[N, H]`` in window order, and that order ``[N / merge**2]`` of the tokens.
        """
        merge = self.config.spatial_merge_size
        per_token = merge**2
        pictures = [rows * columns * per_token for rows, columns in grids]
        order, windows = self._windows(tuple(grids), patches.device)
        positions = torch.cat([patch_positions(grid, merge) for grid in grids]).to(patches.device)
        angles = self._angles(positions)
        x = self.patch_embed(patches)
        if self.config.window_size:
            x = x.unflatten(0, (-1, per_token))[order].flatten(0, 1)
            angles = angles.unflatten(0, (-1, per_token))[order].flatten(0, 1)
        for index, block in enumerate(self.blocks):
            whole = not self.config.window_size or index in self.config.fullatt_block_indexes
            x = block(x, angles, pictures if whole else windows)
        return x, order

    def _windows(self, grids: tuple[Grid, ...], device: torch.device) -> tuple[Tensor, list[int]]:
        if not self.config.window_size:
            return torch.arange(sum(rows * columns for rows, columns in grids), device=device), []
        order, lengths = window_order(grids, self.config.window_size // self.config.pixels_per_token)
        return order.to(device), [length * self.config.spatial_merge_size**2 for length in lengths]

    def _angles(self, positions: Tensor) -> Tensor:
        """``[N, head_dim / 2]``: the first half from the row, the second from the column."""
        quarter = self.config.hidden_size // self.config.num_heads // 4
        steps = torch.arange(quarter, dtype=torch.float32, device=positions.device) / quarter
        return (positions[:, :, None] * 10000.0**-steps).flatten(1)


class VisualBridge(nn.Module):
    """Norm, join the patches of a token, project, and return to raster order (docs/format.md)."""

    def __init__(self, config: DinaVisionConfig) -> None:
        super().__init__()
        joined = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(joined, joined), nn.GELU(), nn.Linear(joined, config.out_hidden_size)
        )

    def forward(self, hidden: Tensor, order: Tensor) -> Tensor:
        """``hidden [N, H]`` in the given token order to features ``[N / merge**2, out_hidden_size]``."""
        joined = self.ln_q(hidden).view(len(order), -1)
        return self.mlp(joined)[order.argsort()]


def _rotate_halves(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates ``x [N, heads, hd]`` by ``angles [N, hd / 2]``, pairing the two halves of a head."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
