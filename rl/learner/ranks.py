"""The ranks of a learner group: how they find each other, and what they tell each other."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dina.errors import DinaError
from dina.policies.stats import StatSums


def init_rank(
    rank: int,
    world_size: int,
    master_addr: str = "127.0.0.1",
    master_port: int = 29500,
    device: str | torch.device = "cpu",
    timeout: float = 600.0,
) -> torch.device:
    """Makes this process rank ``rank`` of ``world_size``, and waits for the others.

    Tensors travel over NCCL where ``device`` is a GPU, over gloo on a CPU. Rank 0 listens on ``master_addr`` alone;
    if that is a loopback address, so do the connections between the ranks.

    Args:
        master_addr, master_port: where rank 0 listens; the same for all ranks.
        device: this rank's own, such as ``cuda:0``. ``cuda`` is the first GPU that the process sees.
        timeout: seconds that a rank waits for another, here and in every later exchange.

    Returns:
        the device, with its index.

    Raises:
        DinaError: the address cannot be listened on, or not all ranks came in time.
    """
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", own.index or 0)
        torch.cuda.set_device(own)
    else:
        # DeepSpeed looks for a GPU otherwise.
        os.environ.setdefault("DS_ACCELERATOR", own.type)
    if _is_loopback(master_addr):
        _stay_on_loopback()
    # DeepSpeed and accelerate read these.
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(own.index or 0),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
    }
    limit = timedelta(seconds=timeout)
    try:
        # By itself, the store of rank 0 would listen on every network interface.
        listener = socket.create_server((master_addr, master_port)).detach() if rank == 0 else None
        store = dist.TCPStore(
            master_addr,
            master_port,
            world_size,
            is_master=rank == 0,
            timeout=limit,
            master_listen_fd=listener,
        )
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    except (OSError, RuntimeError) as error:
        raise DinaError(
            f"rank {rank} of {world_size} did not find the others at {master_addr}:{master_port} ({error}); are all "
            "ranks started, and is the port free?"
        ) from error
    return own


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nothing listens on at the moment."""
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


def _is_loopback(address: str) -> bool:
    return address in ("localhost", "::1") or address.startswith("127.")


def _stay_on_loopback() -> None:
    """Without it, gloo and NCCL connect the ranks over the interface that the host's name leads to."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one policy. Alone, every exchange gives back what it was given.

    The rows of a batch are dealt in blocks of ``ceil(rows / size)``, so every rank computes equally many; the last
    ranks fill up with copies of the last row, which must weigh nothing.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The group that ``init_rank`` joined; a process of its own without one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def deal(self, count: int) -> tuple[Tensor, Tensor]:
        """This rank's rows out of ``count``: indices, and ``real``, False where a row only fills up."""
        block = math.ceil(count / self.size)
        rows = torch.arange(self.rank * block, (self.rank + 1) * block)
        return rows.clamp(max=count - 1), rows < count

    def micro_batches(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``deal`` in pieces of at most ``size`` rows; equally many on all ranks."""
        rows, real = self.deal(count)
        yield from zip(rows.split(size), real.split(size), strict=True)

    def gather_rows(self, part: Tensor, count: int) -> Tensor:
        """Joins what each rank computed for its rows ``[ceil(count / size), …]`` to ``[count, …]``, on all ranks."""
        if self.size == 1:
            return part
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts)[:count]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Adds up over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def take_first_(self, tensor: Tensor) -> Tensor:
        """Rank 0's ``tensor`` on all ranks, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        if self.size > 1:
            dist.barrier()

    def merge(self, stats: StatSums, device: torch.device) -> StatSums:
        """Statistics over the rows of all ranks. All ranks must have counted the same names.

        Args:
            device: that the ranks' tensors travel from.
        """
        if self.size == 1:
            return stats
        merged = StatSums()
        for own, into, operation in (
            (stats.sums, merged.sums, dist.ReduceOp.SUM),
            (stats.minima, merged.minima, dist.ReduceOp.MIN),
            (stats.maxima, merged.maxima, dist.ReduceOp.MAX),
        ):
            if names := sorted(own):
                values = torch.stack([own[name].to(device) for name in names])
                dist.all_reduce(values, operation)
                into.update(zip(names, values, strict=True))
        return merged
