"""How new weights get from the learner's ranks into rollout engines that are processes of their own.

=================  ==========================================================================
``object_store``   any device: tensors go once into Ray's object store
``nccl``           GPU to other GPUs: vLLM's NCCL broadcast
``ipc``            learner and engine share a GPU: vLLM's CUDA IPC handles
=================  ==========================================================================

``nccl`` and ``ipc`` follow the public API of ``vllm.distributed.weight_transfer`` (0.32 and 0.33). They have not been
run: who calls whom is tested with a transfer on CPU in vLLM's place, vLLM's own two by their signatures alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

TransportName = Literal["object_store", "nccl", "ipc"]
Packed = dict[str, tuple[np.ndarray, str]]
NamedTensors = Iterable[tuple[str, Tensor]]


class Engines(Protocol):
    """The engines that weights go to; ``call`` runs a method on each at once and waits for all."""

    def __len__(self) -> int: ...

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``arguments``: one tuple per engine."""
        ...


class RayEngines:
    """Engines that are Ray actors."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        import ray

        return ray.get(
            [getattr(a, method).remote(*given) for a, given in zip(self.actors, arguments, strict=True)]
        )


class WeightSender:
    """The learner's side of vLLM's own weight transfer; every learner rank has one, and rank 0 sends.

    The engines must be built with ``weight_transfer=info.backend``, and their actors pass
    ``transfer_weights(step, info, version)`` on to ``VllmEngine.transfer_weights``.

    Args:
        info: vLLM's ``TrainerInitInfo`` (:func:`transfer_info`).
        weights: yields the policy's tensors as they are now, in the same order each time. All ranks iterate
            together, to the end; for ``ipc`` each is given all tensors, for ``nccl`` rank 0 alone.
        gpus_per_engine: each engine's GPUs are as many ranks of the group that tensors are broadcast in; ``None``
            where there is no such group.
    """

    def __init__(
        self, info: Any, engines: Engines, weights: Callable[[], NamedTensors], gpus_per_engine: int | None
    ) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self.client = _SyncClient(engines, gpus_per_engine)
        self.trainer = WeightTransferTrainerFactory.trainer_init(
            info, client=self.client, source=_weight_source(weights)
        )

    def send(self, version: int) -> None:
        """Brings the weights into every engine, stamped with ``version``. All ranks call it together."""
        self.client.version = version
        self.trainer.send_weights()

    def close(self) -> None:
        self.trainer.shutdown()


def transfer_info(backend: TransportName, rank: int, engine_gpus: int, address: str, port: int) -> Any:
    """What opens vLLM's transfer on a learner rank.

    Args:
        engine_gpus: of all engines together.
        address, port: of rank 0, reachable by the engines; NCCL meets there.
    """
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=rank, packed=True)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(
        rank=rank, master_address=address, master_port=port, world_size=1 + engine_gpus
    )


def _weight_source(weights: Callable[[], NamedTensors]) -> Any:
    """vLLM's ``WeightSource`` of what ``weights`` yields."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):
        def __init__(self) -> None:
            self.described: list[Any] | None = None

        def metadata(self) -> list[Any]:
            # Gathered once, on all ranks alike: names, types and shapes do not change.
            if self.described is None:
                self.described = [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in weights()]
            return self.described

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter((name, tensor.detach()) for name, tensor in weights())

    return Source()


class _SyncClient:
    """What vLLM's trainer side calls to steer its workers (``VLLMWeightSyncClient``)."""

    def __init__(self, engines: Engines, ranks_per_engine: int | None) -> None:
        self.engines, self.ranks_per_engine = engines, ranks_per_engine
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in range(len(self.engines))]
        if self.ranks_per_engine is not None:
            # vLLM gives every engine the same first rank, as if all workers belonged to one.
            for index, info in enumerate(infos):
                info["rank_offset"] += index * self.ranks_per_engine
        self._call("init", infos)

    def start_weight_update(self) -> None:
        self._call("start", self._nothing)

    def update_weights(self, update_info: Any) -> None:
        self._call("update", [update_info] * len(self.engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish", self._nothing)

    @property
    def _nothing(self) -> list[None]:
        return [None] * len(self.engines)

    def _call(self, step: str, infos: Sequence[Any]) -> None:
        self.engines.call("transfer_weights", [(step, info, self.version) for info in infos])


def pack_weights(tensors: NamedTensors) -> Packed:
    """Tensors as arrays, which Ray stores without copying; bfloat16, unknown to numpy, as 16-bit integers."""
    packed: Packed = {}
    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        packed[name] = ((tensor.view(torch.int16) if dtype == "bfloat16" else tensor).numpy(), dtype)
    return packed


def unpack_weights(packed: Packed) -> Iterator[tuple[str, Tensor]]:
    """The tensors that ``pack_weights`` was given, as views of the arrays."""
    for name, (array, dtype) in packed.items():
        with warnings.catch_warnings():
            # Ray's arrays are read-only, which torch warns about; nobody writes to these.
            warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")
            tensor = torch.from_numpy(array)
        yield name, tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
