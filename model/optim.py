"""Muon for the hidden matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

_NOT_HIDDEN = ("embed_tokens", "lm_head", "visual_head.heads")


class JointOptimizer(Optimizer):
    """Steps several optimizers together; schedulers see the groups of all."""

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def muon_with_adamw(
    model: nn.Module,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay_tables: bool = True,
) -> JointOptimizer:
    """Splits the trainable weights: matrices between hidden states to Muon, the rest to AdamW.

    Muon (Jordan et al. 2024) orthogonalises the update of a matrix; tables, output heads and vectors are
    AdamW's, vectors without decay.
    """
    hidden: list[Tensor] = []
    tables: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_hidden = parameter.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)
            (hidden if is_hidden else tables if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": tables, "weight_decay": weight_decay if decay_tables else 0.0},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=eps)
    if not hidden:
        return JointOptimizer([adamw])
    return JointOptimizer([Muon(hidden, lr=muon_learning_rate, weight_decay=weight_decay), adamw])
