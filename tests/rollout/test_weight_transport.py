from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from dina.rollout.weight_transport import pack_weights, unpack_weights


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
