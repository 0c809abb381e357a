"""Starting vLLM in this process: its environment, its settings, and what is read of a checkpoint beforehand."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dina.errors import DinaError
from dina.model.config import DinaConfig

GIB = 2**30


def prepare_process() -> None:
    """vLLM takes these from the environment alone, and reads them when it is first used."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")  # its process group of one listens on loopback
    # oneDNN keeps 1024 compiled products, one per number of rows: over 100 MB after some hundred steps. With 32 or 128
    # an engine draws as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # What its import has to say of deprecated parts of torch and of missing Triton and CUDA helps nobody here.
    for name in ("torch", "torch.utils.cpp_extension", "vllm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")


def no_groups_yet() -> bool:
    """Whether vLLM will be the one who sets up torch's process groups here."""
    if not torch.distributed.is_initialized():
        return True
    if (ranks := torch.distributed.get_world_size()) > 1:
        raise DinaError(
            f"this process is one of {ranks} of a distributed trainer, in which vLLM cannot set up process groups; "
            "run the engine in a process of its own (rl.runner=ray), or use rollout.engine=torch"
        )
    return False


def start_vllm(
    settings: dict[str, Any],
    levels: int,
    kv_cache_gib: float,
    gpu_memory: float,
    weight_transfer: str | None,
) -> Any:
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    from dina.rollout.vllm_plugin import register_in_process

    register_in_process()
    if current_platform.is_cpu():
        settings |= {
            "worker_cls": "dina.rollout.vllm_runner.DinaCPUWorker",
            "kv_cache_memory_bytes": int(kv_cache_gib * GIB),
        }
    else:
        settings |= {
            "worker_cls": "dina.rollout.vllm_runner.DinaGPUWorker",
            "gpu_memory_utilization": gpu_memory,
        }
    if weight_transfer is not None:
        settings["weight_transfer_config"] = WeightTransferConfig(backend=weight_transfer)
    args = EngineArgs(
        **settings,
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        enable_prompt_embeds=True,  # makes vLLM keep its inputs as embeddings, which the runner writes
        max_logprobs=2 * levels,
        async_scheduling=False,  # the runner reads what was drawn on the host
        disable_log_stats=True,
        seed=0,
    )
    return LLMEngine.from_engine_args(args)


def read_config(folder: Path) -> DinaConfig:
    if not (folder / "config.json").is_file():
        raise DinaError(f"{folder} has no config.json, so it is not a checkpoint")
    try:
        return DinaConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DinaError(
            f"{folder}: config.json cannot be read ({error}); copy the checkpoint again"
        ) from error


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint's weights, from the headers of its files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  no mapping, it has keys() alone
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    if not shapes:
        raise DinaError(f"{folder} has no safetensors file, so it is not a checkpoint")
    return shapes
