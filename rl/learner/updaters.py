"""What turns the losses of a minibatch into one optimizer step, in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dina.errors import DinaError
from dina.model.stream import TokenStream
from dina.rl.learner.ranks import Ranks
from dina.rl.recipe.config import OptimConfig

Likelihood = Callable[[TokenStream], tuple[Tensor, Tensor]]
"""``[B, T, C]`` log-probabilities and entropies of a stream's actions."""


class Updater(Protocol):
    """One minibatch is ``begin``, then ``likelihood`` and ``backward`` per micro-batch, then ``step``.

    Every rank makes the same calls in the same order. Losses add up over micro-batches and over ranks.

    Attributes:
        optimizer: whose parameter groups carry the learning rate.
    """

    optimizer: torch.optim.Optimizer

    def begin(self) -> None: ...

    def likelihood(self, stream: TokenStream) -> tuple[Tensor, Tensor]: ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self) -> float:
        """Clips, steps, and returns the gradient's norm over all parameters and ranks before clipping.

        Raises:
            DinaError: the norm is not finite; no parameter has changed.
        """
        ...

    def whole(self, parameters: Sequence[nn.Parameter], write: bool = False) -> AbstractContextManager[None]:
        """In here, the parameters have all their values on every rank.

        Args:
            write: what rank 0 writes into them holds for all ranks; call ``weights_changed`` when all is written.
        """
        ...

    def weights_changed(self) -> None: ...

    def state(self) -> Any:
        """What this rank's optimizer knows, for ``save_training_state``."""
        ...

    def load_state(self, state: Any) -> None:
        """Raises: DinaError: the state is that of another model."""
        ...


class PlainUpdater:
    """Every rank holds the whole model and optimizer, and adds its gradients to those of the others."""

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        optimizer: torch.optim.Optimizer,
        max_norm: float,
        ranks: Ranks,
    ) -> None:
        self.model, self._likelihood, self.optimizer = model, likelihood, optimizer
        self.max_norm, self.ranks = max_norm, ranks

    def begin(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def likelihood(self, stream: TokenStream) -> tuple[Tensor, Tensor]:
        return self._likelihood(stream)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        if self.ranks.size > 1:
            self._add_gradients_of_all_ranks()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm).item()
        refuse_broken(norm)
        self.optimizer.step()
        return norm

    def whole(self, parameters: Sequence[nn.Parameter], write: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def weights_changed(self) -> None:
        for parameter in self.model.parameters():
            self.ranks.take_first_(parameter.data)

    def state(self) -> Any:
        return self.optimizer.state_dict()

    def load_state(self, state: Any) -> None:
        try:
            self.optimizer.load_state_dict(state)
        except (ValueError, KeyError) as error:
            raise DinaError(f"the optimizer's state is that of another model ({error})") from error

    @torch.no_grad()
    def _add_gradients_of_all_ranks(self) -> None:
        """A part that no rank used keeps no gradient, as in one process: the optimizer then leaves it alone."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        used = used.to(parameters[0].device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.ranks.sum_(parameter.grad)


def refuse_broken(norm: float) -> None:
    """Raises: DinaError: ``norm`` is not finite."""
    if not math.isfinite(norm):
        raise DinaError(
            f"the gradient norm is {norm}; lower optim.learning_rate or look at the step's samples"
        )


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what is trainable; norm weights and biases are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
    )


def scheduler(
    optimizer: torch.optim.Optimizer, optim: OptimConfig, updates: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then ``optim.lr_scheduler_type`` until update number ``updates``."""

    def factor(update: int) -> float:
        if update < optim.warmup_steps:
            return (update + 1) / optim.warmup_steps
        share = min(1.0, (update - optim.warmup_steps) / max(1, updates - optim.warmup_steps))
        if optim.lr_scheduler_type == "linear":
            return 1 - share
        return 0.5 * (1 + math.cos(math.pi * share)) if optim.lr_scheduler_type == "cosine" else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
