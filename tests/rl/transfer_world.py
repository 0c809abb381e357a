"""A weight transfer on CPU in the place of vLLM's: the same calls, and a key-value store instead of NCCL."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
from torch.distributed import TCPStore

from dina.rl.cluster import learner_group
from dina.rl.cluster.learner_group import LearnerWorker
from dina.rl.cluster.rollout_pool import RolloutWorker

PATIENCE = timedelta(seconds=120)


class TransferringLearner(LearnerWorker):
    """A learner rank to which vLLM offers the transfer of this module."""

    def join(self, *arguments: Any) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

        @dataclass
        class Info(TrainerInitInfo):
            backend: ClassVar[str] = "store"
            address: str = ""
            port: int = 0
            world_size: int = 0

        class Trainer(TrainerWeightTransferEngine):
            init_info_cls = Info

            @classmethod
            def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> Any:
                trainer = cls(client=client, source=source, is_sender=init_info.is_sender)
                if trainer.is_sender:
                    info = {"address": init_info.address, "port": init_info.port, "rank_offset": 1}
                    with ThreadPoolExecutor(1) as thread:
                        joining = thread.submit(client.init_weight_transfer_engine, info)
                        trainer.store = TCPStore(init_info.address, init_info.port, is_master=True)
                        # Every rank once: who shares a rank with another would leave one missing.
                        trainer.store.wait([f"rank {r}" for r in range(1, init_info.world_size)], PATIENCE)
                        joining.result()
                trainer.sent = 0
                return trainer

            def send_weights(self) -> None:
                described = self.source.metadata()
                tensors = list(self.source)
                if not self.is_sender:
                    assert not tensors
                    return
                assert [(m.name, m.shape, m.dtype) for m in described] == [
                    (name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors
                ]
                self.sent += 1
                self.client.start_weight_update()
                with ThreadPoolExecutor(1) as thread:
                    # The workers block in here until the tensors come.
                    receiving = thread.submit(self.client.update_weights, {"key": f"weights {self.sent}"})
                    data = io.BytesIO()
                    torch.save(dict(tensors), data)
                    self.store.set(f"weights {self.sent}", data.getvalue())
                    receiving.result()
                self.client.finish_weight_update()

            def shutdown(self) -> None:
                if self.is_sender:
                    del self.store

        if "store" not in WeightTransferTrainerFactory._registry:
            WeightTransferTrainerFactory.register_engine("store", Trainer)
        learner_group.transfer_info = lambda backend, rank, gpus, address, port: Info(  # type: ignore[assignment]
            address=address, port=port, world_size=1 + gpus, rank=rank
        )
        super().join(*arguments)


class ReceivingWorker(RolloutWorker):
    """A rollout worker whose engine takes part in that transfer. By the other way it is given weights once: new."""

    updates = 0
    transfers = 0

    def update(self, references: Sequence[Any], version: int) -> None:
        assert not self.updates and not self.transfers, "the weights were to come by the transfer"
        self.updates += 1
        super().update(references, version)

    def transfer_weights(self, step: str, info: Any, version: int) -> None:
        match step:
            case "init":
                self.store = TCPStore(info["address"], info["port"], is_master=False, timeout=PATIENCE)
                self.store.set(f"rank {info['rank_offset']}", "here")
            case "start":
                self.received: dict[str, torch.Tensor] = {}
            case "update":
                self.received |= torch.load(io.BytesIO(self.store.get(info["key"])))
            case "finish":
                self.engine.update_weights(self.received.items(), version)
                self.transfers += 1
