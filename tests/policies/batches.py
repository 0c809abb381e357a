"""Random ragged batches in float64, as a trainer would hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    logp: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    entropy: Tensor
    actions: Tensor
    advantages: Tensor
    keep: Tensor

    def select(self, rows) -> Batch:
        return Batch(**{name: value[rows] for name, value in vars(self).items()})

    def padded(self, extra: int, fill: float) -> Batch:
        """``extra`` positions without actions on the right, full of ``fill``."""
        fields = dict(vars(self))
        for name in ("logp", "old_logp", "ref_logp", "entropy"):
            shape = (len(self.keep), extra, self.actions.shape[2])
            fields[name] = torch.cat([fields[name], torch.full(shape, fill, dtype=torch.float64)], 1)
        nothing = torch.zeros(len(self.keep), extra, self.actions.shape[2], dtype=torch.bool)
        return Batch(**fields | {"actions": torch.cat([self.actions, nothing], 1)})


def ragged(seed: int, sequences: int = 6, positions: int = 7, levels: int = 3, drift: float = 0.3) -> Batch:
    """Prompts and lengths of any size, text, pictures and both; row 0 is all picture, row 1 all text."""
    rng = torch.Generator().manual_seed(seed)
    shape = (sequences, positions, 1 + levels)
    image = torch.rand(shape[:2], generator=rng) < 0.5
    image[0], image[1] = True, False
    real = torch.rand(shape[:2], generator=rng) < 0.8
    real[:, 0] = True
    actions = (
        torch.cat([~image[..., None], image[..., None].expand(*shape[:2], levels)], -1) & real[..., None]
    )
    logp = -3 * torch.rand(shape, generator=rng, dtype=torch.float64) - 0.05
    keep = torch.rand(sequences, generator=rng) < 0.7
    keep[:2] = True

    def moved() -> Tensor:
        return logp + drift * torch.randn(shape, generator=rng, dtype=torch.float64)

    return Batch(
        logp=logp,
        old_logp=moved(),
        ref_logp=moved(),
        entropy=2 * torch.rand(shape, generator=rng, dtype=torch.float64),
        actions=actions,
        advantages=torch.randn(sequences, generator=rng, dtype=torch.float64),
        keep=keep,
    )
