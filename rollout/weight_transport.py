"""How new weights get from the learner into rollout engines, chosen by where the two stand.

=================  ==========================================================================
``direct``         engine in the learner's process: tensors are handed over
``object_store``   engines are Ray actors, any device: tensors go once into Ray's object store
``nccl``           GPU to other GPUs: vLLM's NCCL broadcast
``ipc``            learner and engine share a GPU: vLLM's CUDA IPC handles
=================  ==========================================================================

``direct`` and ``object_store`` are tested on CPU. ``nccl`` and ``ipc`` follow the public API of
``vllm.distributed.weight_transfer`` (0.32 and 0.33); here only their signatures are checked, they have not been run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dina.errors import DinaError

TransportName = Literal["direct", "object_store", "nccl", "ipc"]
Packed = dict[str, tuple[np.ndarray, str]]


@dataclass(frozen=True)
class Placement:
    """Where learner and engines stand.

    Attributes:
        same_process: the engine is an object of the learner's process.
        learner_gpu, engine_gpus: ids of the GPUs (their UUIDs), ``None`` and empty on CPU.
    """

    same_process: bool
    learner_gpu: str | None = None
    engine_gpus: tuple[str, ...] = ()


class Transport(Protocol):
    """Brings the learner's weights as they are now into every engine, stamped with ``version``."""

    def send(self, version: int) -> None: ...

    def close(self) -> None: ...


class Engines(Protocol):
    """The engines that weights go to; ``call`` runs a method on each at once and waits for all."""

    def __len__(self) -> int: ...

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``arguments``: one tuple per engine."""
        ...


class RayEngines:
    """Engines that are Ray actors.

    Raises (from ``call``):
        DinaError: an engine did not answer in time.
    """

    def __init__(self, actors: Sequence[Any], timeout_s: float = 300.0) -> None:
        self.actors, self.timeout_s = list(actors), timeout_s

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        import ray

        calls = [getattr(a, method).remote(*given) for a, given in zip(self.actors, arguments, strict=True)]
        try:
            return ray.get(calls, timeout=self.timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise DinaError(
                f"rollout engines: {method} took more than {self.timeout_s:g} s on one of {len(self)} engines"
            ) from error


def choose_transport(placement: Placement) -> TransportName:
    """The fastest way that the placement allows."""
    if placement.same_process:
        return "direct"
    if placement.learner_gpu is None or not placement.engine_gpus:
        return "object_store"
    shared = [gpu == placement.learner_gpu for gpu in placement.engine_gpus]
    if all(shared):
        return "ipc"
    # NCCL refuses two ranks on one GPU, and IPC does not leave it.
    return "object_store" if any(shared) else "nccl"


class DirectTransport:
    """To an engine in this process."""

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self.engine, self.model = engine, model

    def send(self, version: int) -> None:
        self.engine.update_weights(self.model.named_parameters(), version)

    def close(self) -> None:
        """Nothing to release."""


class ObjectStoreTransport:
    """Through Ray's object store: written once, mapped by every engine of the machine without a copy.

    The actors' method ``update_packed_weights(packed, version)`` should call
    ``engine.update_weights(unpack_weights(packed), version)``.
    """

    def __init__(
        self, engines: Engines, model: nn.Module, put: Callable[[Packed], Any] | None = None
    ) -> None:
        if put is None:
            import ray

            put = ray.put
        self.engines, self.model, self.put = engines, model, put

    def send(self, version: int) -> None:
        reference = self.put(pack_weights(self.model.named_parameters()))
        self.engines.call("update_packed_weights", [(reference, version)] * len(self.engines))

    def close(self) -> None:
        """Nothing to release: an object leaves the store with its last reference."""


class VllmTransport:
    """vLLM's own weight transfer: the learner broadcasts (NCCL) or shares (IPC) its parameters.

    Not run here: there is no GPU. The engines must be built with ``weight_transfer=backend``, and their actors
    pass ``transfer_weights(step, info, version)`` on to ``VllmEngine.transfer_weights``.

    Args:
        master: (address, port) of the learner, reachable by the engines (NCCL alone).
        rank: of this learner process; all ranks take part, rank 0 sends.
        tensor_parallel: GPUs per engine.
    """

    def __init__(
        self,
        backend: Literal["nccl", "ipc"],
        engines: Engines,
        model: nn.Module,
        master: tuple[str, int] | None = None,
        rank: int = 0,
        tensor_parallel: int = 1,
    ) -> None:
        from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory

        self.client = _SyncClient(engines, tensor_parallel if backend == "nccl" else None)
        info: Any
        if backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            if master is None:
                raise DinaError("weight transfer by NCCL needs the learner's address and a free port")
            info = NCCLTrainerInitInfo(
                rank=rank,
                master_address=master[0],
                master_port=master[1],
                world_size=1 + len(engines) * tensor_parallel,
            )
        else:
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(rank=rank, packed=True)
        self.sender = WeightTransferTrainerFactory.trainer_init(
            info, client=self.client, source=ModuleSource(model)
        )

    def send(self, version: int) -> None:
        self.client.version = version
        self.sender.send_weights()

    def close(self) -> None:
        self.sender.shutdown()


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


def pack_weights(tensors: Iterable[tuple[str, Tensor]]) -> Packed:
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
