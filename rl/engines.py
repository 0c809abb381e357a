"""Opens what draws samples with a checkpoint, as a recipe's section ``rollout`` describes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dina.model.checkpoint import load_checkpoint
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rl.environment import pick_device
from dina.rl.recipe.config import RolloutConfig
from dina.rollout.protocol import Prompt, RolloutEngine
from dina.rollout.torch_engine import TorchEngine
from dina.rollout.weight_transport import TransportName


class Engine(RolloutEngine, Protocol):
    """An engine that can also say beforehand what it cannot draw, and score what is drawn already."""

    def probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> list[Tensor]:
        """Log-probabilities ``[T, C]`` of the actions of single-row streams, 0 at everything else."""
        ...

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Raises: DinaError: a prompt does not fit the context."""
        ...


def open_engine(
    checkpoint: Path,
    rollout: RolloutConfig,
    dtype: str,
    device: str,
    threads: int | None = None,
    gpu_memory: float = 0.85,
    transport: TransportName = "object_store",
) -> Engine:
    """The engine of ``rollout.engine``.

    Args:
        threads: CPU threads of vLLM; ``None`` leaves them as they are.
        gpu_memory: share of the GPU that vLLM takes if ``rollout.gpu_memory`` says nothing.
        transport: how new weights will come.

    Raises:
        DinaError: the folder is no checkpoint, or the engine is not installed.
    """
    if rollout.engine == "vllm":
        from dina.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            checkpoint,
            dtype=dtype,
            threads=threads,
            max_num_seqs=rollout.batch_size,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory=rollout.gpu_memory or gpu_memory,
            tensor_parallel=rollout.tensor_parallel,
            weight_transfer=None if transport == "object_store" else transport,
        )
    return TorchEngine(load_checkpoint(checkpoint, device=pick_device(device)), rollout.batch_size, dtype)
