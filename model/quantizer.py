"""Residual vector quantisation with EMA codebooks (paper §2.2.3, eq. 3–5; docs/format.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dina.model.vision_config import DinaQuantizerConfig

_KMEANS_ROUNDS = 10


@dataclass
class Quantized:
    """Result of the quantiser for ``N`` tokens; vectors are float32.

    ``latents [N, D]`` before quantisation, ``codes [N, L]``, ``partial_sums [L, N, D]`` of the chosen code
    vectors, ``residuals [L, N, D]`` that each level saw.
    """

    latents: Tensor
    codes: Tensor
    partial_sums: Tensor
    residuals: Tensor

    @property
    def reconstruction(self) -> Tensor:
        """``[N, D]``, the sum over all levels."""
        return self.partial_sums[-1]

    @property
    def straight_through(self) -> Tensor:
        """``reconstruction`` in value, ``latents`` in gradient."""
        return self.latents + (self.reconstruction - self.latents).detach()

    def commitment_loss(self) -> Tensor:
        """Squared distance of the latents to the code vectors so far, averaged over levels (eq. 5)."""
        return F.mse_loss(self.latents.expand_as(self.partial_sums), self.partial_sums.detach())


class EmaCodebook(nn.Module):
    """One level's code vectors. The last row of ``embed`` is an unused padding entry."""

    embed: Tensor
    embed_ema: Tensor
    cluster_size_ema: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        vectors = torch.randn(size, width) * width**-0.5
        self.register_buffer("embed", torch.cat([vectors, torch.zeros(1, width)]))
        self.register_buffer("embed_ema", vectors.clone())
        self.register_buffer("cluster_size_ema", torch.ones(size))

    @property
    def vectors(self) -> Tensor:
        """``[K, D]`` without the padding row."""
        return self.embed[:-1]

    def nearest(self, x: Tensor) -> Tensor:
        """Code of the nearest vector for every row of ``x [N, D]``."""
        vectors = self.vectors
        return torch.addmm(vectors.square().sum(1), x, vectors.T, alpha=-2.0).argmin(1)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.embed)

    @torch.no_grad()
    def update(self, x: Tensor, codes: Tensor, config: DinaQuantizerConfig) -> int:
        """One EMA step towards the rows ``x [N, D]`` with their codes (eq. 4); returns restarted codes."""
        size = len(self.cluster_size_ema)
        counts = torch.bincount(codes, minlength=size).to(x.dtype)
        sums = torch.zeros_like(self.embed_ema).index_add_(0, codes, x)
        self.cluster_size_ema.lerp_(counts, 1 - config.decay)
        self.embed_ema.lerp_(sums, 1 - config.decay)
        restarted = self._restart_dead(x, codes, config.restart_threshold)
        total = self.cluster_size_ema.sum()
        smoothed = (self.cluster_size_ema + config.smoothing) / (total + size * config.smoothing) * total
        self.embed[:-1] = self.embed_ema / smoothed[:, None]
        return restarted

    def _restart_dead(self, x: Tensor, codes: Tensor, threshold: float) -> int:
        dead = (self.cluster_size_ema < threshold).nonzero()[:, 0]
        errors = (x - self.lookup(codes)).square().sum(1)
        count = min(len(dead), int((errors > 0).sum()))
        if count == 0:
            return 0
        # Badly served vectors are the likelier seeds; uniform draws would mostly repeat the background.
        chosen = torch.multinomial(errors, count)
        dead = dead[:count]
        self.cluster_size_ema[dead] = 1.0
        self.embed_ema[dead] = x[chosen]
        return count

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """k-means++ seeds from the rows ``x [N, D]``, then a few k-means rounds."""
        size = len(self.cluster_size_ema)
        vectors = _spread_seeds(x, size)
        counts = torch.ones(size, device=x.device)
        for _ in range(_KMEANS_ROUNDS):
            codes = torch.cdist(x, vectors).argmin(1)
            counts = torch.bincount(codes, minlength=size).to(x.dtype)
            sums = torch.zeros_like(vectors).index_add_(0, codes, x)
            vectors = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], vectors)
        counts = counts.clamp(min=1)
        self.embed[:-1] = vectors
        self.cluster_size_ema.copy_(counts)
        self.embed_ema.copy_(vectors * counts[:, None])


class ResidualQuantizer(nn.Module):
    """``L`` codebooks, each of which quantises what the levels before it left over (eq. 3)."""

    def __init__(self, config: DinaQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebooks = nn.ModuleList(EmaCodebook(size, config.codebook_dim) for size in config.sizes)

    def forward(self, x: Tensor) -> Quantized:
        """``x [N, D]``; computed in float32 whatever the caller's precision."""
        latents = x.float()
        residual, codes, sums, residuals = latents.detach(), [], [], []
        total = torch.zeros_like(residual)
        for codebook in self.codebooks:
            code = codebook.nearest(residual)
            vector = codebook.lookup(code)
            residuals.append(residual)
            residual, total = residual - vector, total + vector
            codes.append(code)
            sums.append(total)
        return Quantized(latents, torch.stack(codes, 1), torch.stack(sums), torch.stack(residuals))

    def lookup(self, codes: Tensor) -> Tensor:
        """Sum of the code vectors, ``[N, L]`` to ``[N, D]``."""
        vectors = [book.lookup(codes[:, level]) for level, book in enumerate(self.codebooks)]
        return torch.stack(vectors).sum(0)

    @torch.no_grad()
    def update(self, result: Quantized) -> int:
        """EMA step of every codebook from one training batch; returns how many codes were restarted."""
        if not self.config.shared_codebook:
            steps = zip(self.codebooks, result.residuals, result.codes.T, strict=True)
            return sum(book.update(x, codes, self.config) for book, x, codes in steps)
        first = self.codebooks[0]
        restarted = first.update(result.residuals.flatten(0, 1), result.codes.T.flatten(), self.config)
        self._share()
        return restarted

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Codebooks from data, level by level."""
        residual = x.detach().float()
        for level, codebook in enumerate(self.codebooks):
            if level == 0 or not self.config.shared_codebook:
                codebook.initialise(residual)
            else:
                codebook.load_state_dict(self.codebooks[0].state_dict())
            residual = residual - codebook.lookup(codebook.nearest(residual))

    def _share(self) -> None:
        for codebook in self.codebooks[1:]:
            codebook.load_state_dict(self.codebooks[0].state_dict())


class VisualQuantizer(nn.Module):
    """``quant_conv`` (LayerNorm, Linear, GELU, Linear), then the residual quantiser."""

    def __init__(self, config: DinaQuantizerConfig) -> None:
        super().__init__()
        width = config.in_channels
        self.quant_conv: nn.Module = nn.Identity()
        if config.quant_conv:
            self.quant_conv = nn.Sequential(
                nn.LayerNorm(width, eps=config.layer_norm_eps),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, config.codebook_dim),
            )
        self.quantize = ResidualQuantizer(config)

    def forward(self, features: Tensor) -> Quantized:
        """``features [N, in_channels]``."""
        return self.quantize(self.quant_conv(features))

    def lookup(self, codes: Tensor) -> Tensor:
        return self.quantize.lookup(codes)


def _spread_seeds(x: Tensor, size: int) -> Tensor:
    """k-means++: each seed drawn with probability proportional to the squared distance to those before."""
    seeds = [x[torch.randint(len(x), (1,), device=x.device)]]
    distance = (x - seeds[0]).square().sum(1)
    while len(seeds) < size:
        if distance.max() <= 0:
            spread = 1e-4 * torch.randn(size - len(seeds), x.shape[1], device=x.device)
            return torch.cat([*seeds, seeds[0] + spread])
        seeds.append(x[torch.multinomial(distance, 1)])
        distance = torch.minimum(distance, (x - seeds[-1]).square().sum(1))
    return torch.cat(seeds)
