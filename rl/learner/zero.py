"""Sharding over ranks with DeepSpeed's ZeRO: optimizer and gradients (stage 2), and the parameters too (stage 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dina.errors import DinaError
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.stream import TokenStream
from dina.rl.learner.backbone import decoder_layers
from dina.rl.learner.ranks import Ranks
from dina.rl.learner.updaters import Likelihood, refuse_broken

PERSISTENCE_THRESHOLD = 10_000
"""Parameters with fewer numbers stay whole on every rank in stage 3: gathering them would cost more than it saves."""


class ZeroUpdater:
    """A DeepSpeed engine in float32; bfloat16 is autocast inside of ``likelihood``, as without DeepSpeed.

    Raises:
        DinaError: DeepSpeed is not installed.
    """

    def __init__(
        self,
        model: DinaForConditionalGeneration,
        likelihood: Likelihood,
        optimizer: torch.optim.Optimizer,
        max_norm: float,
        ranks: Ranks,
        stage: int,
        micro_batch_size: int,
    ) -> None:
        try:
            import deepspeed
        except ImportError:
            raise DinaError(
                "learner.zero_stage needs DeepSpeed: pip install 'dina-rl[deepspeed]', or set it to 0"
            ) from None
        # Otherwise it would compile an all-reduce over shared memory that is for inference, with a C++ compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage, self.ranks, self._gathered = stage, ranks, deepspeed.zero.GatheredParameters
        layers = decoder_layers(model)
        for layer in layers:
            layer._z3_leaf = True  # type: ignore[assignment]
        self.engine, *_ = deepspeed.initialize(
            model=_Policy(model, likelihood, layers),
            optimizer=optimizer,
            config=_settings(stage, max_norm, micro_batch_size),
            dist_init_required=False,
        )
        self.optimizer = self.engine.optimizer.optimizer

    def begin(self) -> None:
        """``step`` has cleared the gradients."""

    def likelihood(self, stream: TokenStream) -> tuple[Tensor, Tensor]:
        return self.engine(stream)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages over ranks; the loss is a part of a sum.
        self.engine.backward(loss * self.ranks.size)

    def step(self) -> float:
        self.engine.step()
        # DeepSpeed leaves out a step whose gradient is not finite, and then tells no norm.
        norm = float("inf") if self.engine.optimizer.overflow else float(self.engine.get_global_grad_norm())
        refuse_broken(norm)
        return norm

    def whole(self, parameters: Sequence[nn.Parameter], write: bool = False) -> AbstractContextManager[None]:
        if self.stage < 3:
            return nullcontext()
        return self._gathered(list(parameters), modifier_rank=0 if write else None)

    def weights_changed(self) -> None:
        if self.stage < 3:
            for parameter in self.engine.module.parameters():
                self.ranks.take_first_(parameter.data)
        self.engine.optimizer.refresh_fp32_params()

    def state(self) -> list[dict[str, Tensor]]:
        """Adam's moments of this rank's shards."""
        return [dict(self.optimizer.state.get(shard, {})) for shard in self._shards()]

    def load_state(self, state: list[dict[str, Tensor]]) -> None:
        """Raises: DinaError: the shards are those of another model."""
        for shard, saved in zip(self._shards(), state, strict=True):
            moments = {name: value.to(shard.device) for name, value in saved.items() if name != "step"}
            if any(value.shape != shard.shape for value in moments.values()):
                raise DinaError("the optimizer's shards are those of another model")
            if saved:
                self.optimizer.state[shard] = {"step": saved["step"], **moments}

    def _shards(self) -> list[Tensor]:
        """The flat float32 tensors that the optimizer steps."""
        zero = self.engine.optimizer
        return zero.single_partition_of_fp32_groups if self.stage < 3 else zero.fp32_partitioned_groups_flat


class _Policy(nn.Module):
    """The policy as DeepSpeed sees it: decoder layers, and all other parameters as its own.

    Stage 3 gathers the parameters of a module when it is called, and all ranks must call the same modules in the
    same order. Decoder layers are called once per pass. How often the heads and the tables are depends on the rows,
    so this module owns their parameters, which are whole from the beginning to the end of a pass.
    """

    def __init__(
        self, model: DinaForConditionalGeneration, likelihood: Likelihood, layers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        inside = {id(p) for p in self.layers.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) not in inside:
                self.register_parameter(name.replace(".", "_"), parameter)
        self._likelihood = likelihood

    def forward(self, stream: TokenStream) -> tuple[Tensor, Tensor]:
        logp, entropy = self._likelihood(stream)
        if torch.is_grad_enabled():
            # Every parameter needs a gradient, if only 0: DeepSpeed would step with an old one.
            own = [p.sum() for p in self.parameters(recurse=False) if p.requires_grad]
            logp = logp + 0 * sum(own, logp.new_zeros(()))
        return logp, entropy


def _settings(stage: int, max_norm: float, micro_batch_size: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_norm,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD,
        },
    }
