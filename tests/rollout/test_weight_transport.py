from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from dina.rollout.torch_engine import TorchEngine
from dina.rollout.weight_transport import (
    DirectTransport,
    ObjectStoreTransport,
    Placement,
    choose_transport,
    pack_weights,
    unpack_weights,
)
from tests.tiny_checkpoint import tiny_checkpoint


@pytest.mark.parametrize(
    ("placement", "name"),
    [
        (Placement(same_process=True), "direct"),
        (Placement(same_process=False), "object_store"),
        (Placement(False, learner_gpu="a"), "object_store"),
        (Placement(False, learner_gpu="a", engine_gpus=("b", "c")), "nccl"),
        (Placement(False, learner_gpu="a", engine_gpus=("a",)), "ipc"),
        (Placement(False, learner_gpu="a", engine_gpus=("a", "b")), "object_store"),
    ],
)
def test_the_placement_chooses(placement: Placement, name: str) -> None:
    assert choose_transport(placement) == name


class Engines:
    """Engines behind a store that hands out what was put, as Ray would in this process."""

    def __init__(self, engines: Sequence[TorchEngine]) -> None:
        self.engines = engines

    def __len__(self) -> int:
        return len(self.engines)

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        assert method == "update_packed_weights"
        for engine, (packed, version) in zip(self.engines, arguments, strict=True):
            engine.update_weights(unpack_weights(packed), version)
        return [None] * len(self)


def test_weights_reach_every_engine_with_their_version() -> None:
    learner = tiny_checkpoint(seed=1).model
    engines = [TorchEngine(tiny_checkpoint(seed=2)) for _ in range(2)]
    ObjectStoreTransport(Engines(engines), learner, put=lambda packed: packed).send(7)
    single = TorchEngine(tiny_checkpoint(seed=2))
    DirectTransport(single, learner).send(7)
    for engine in [*engines, single]:
        assert engine.version == 7
        for (name, own), (_, wanted) in zip(
            engine.model.named_parameters(), learner.named_parameters(), strict=True
        ):
            assert torch.equal(own, wanted), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packing_keeps_values_shapes_and_precision(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2).to(dtype)
    packed = pack_weights(layer.named_parameters())
    for array, _ in packed.values():
        array.flags.writeable = False
    for (name, found), (wanted_name, wanted) in zip(
        unpack_weights(packed), layer.named_parameters(), strict=True
    ):
        assert name == wanted_name
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


def test_each_engine_joins_nccl_under_ranks_of_its_own() -> None:
    from dina.rollout.weight_transport import _SyncClient

    calls: list[Any] = []

    class Spy:
        def __len__(self) -> int:
            return 3

        def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
            calls.append((method, arguments))
            return []

    client = _SyncClient(Spy(), ranks_per_engine=2)
    client.version = 4
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    client.start_weight_update()
    client.update_weights({"names": []})
    client.finish_weight_update()
    steps = [[argument[0] for argument in arguments] for _, arguments in calls]
    assert steps == [["init"] * 3, ["start"] * 3, ["update"] * 3, ["finish"] * 3]
    assert [info["rank_offset"] for _, info, _ in calls[0][1]] == [1, 3, 5]
    assert all(version == 4 for _, arguments in calls for _, _, version in arguments)
