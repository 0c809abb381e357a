"""The vLLM rollout engine: continuous batching, paged cache and prefix sharing, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dina.errors import DinaError
from dina.model.checkpoint import VISUAL_TOKENIZER, load_visual_tokenizer
from dina.model.generation import Generation, GenerationRequest
from dina.model.processor import DinaProcessor
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rollout.encoding import PromptCodec
from dina.rollout.protocol import Prompt, Request, Sample
from dina.rollout.vllm_compat import check_vllm
from dina.rollout.vllm_start import no_groups_yet, prepare_process, read_config, start_vllm, weight_shapes
from dina.rollout.vllm_wire import Vocabulary, cache_salt, pack, unpack


class VllmEngine:
    """Draws samples with vLLM; the same samples as ``TorchEngine``'s, as far as float error allows.

    Use one engine per process, and none beside a distributed trainer: vLLM sets up process groups of its own.

    Args:
        checkpoint: a folder that ``save_checkpoint`` wrote.
        dtype: ``float32`` or ``bfloat16``, of weights and computation.
        threads: CPU threads of torch in this process; ``None`` leaves them as they are.
        max_num_seqs: requests that run at once; the others wait.
        max_batched_tokens: positions per step; longer prompts are computed in parts (chunked prefill).
        kv_cache_gib: memory for keys and values on CPU. On GPU, ``gpu_memory`` decides.
        gpu_memory: share of the GPU's memory that vLLM may take.
        kv_blocks: number of cache blocks instead, for tests of preemption.
        block_size: positions per cache block, on CPU a multiple of 32; ``None`` is vLLM's choice.
        prefix_caching: share the computed prompt between the samples of a group.
        compile: let vLLM compile the backbone: tens of seconds at start, faster steps.
        tensor_parallel: GPUs per engine.
        weight_transfer: ``nccl`` or ``ipc`` opens vLLM's own weight transfer (GPU; see ``weight_transport``).

    Raises:
        DinaError: vLLM is missing or another version, or the folder is no checkpoint.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        *,
        dtype: str = "float32",
        threads: int | None = None,
        max_num_seqs: int = 64,
        max_batched_tokens: int = 2048,
        kv_cache_gib: float = 0.5,
        gpu_memory: float = 0.85,
        kv_blocks: int | None = None,
        block_size: int | None = None,
        prefix_caching: bool = True,
        compile: bool = False,
        tensor_parallel: int = 1,
        weight_transfer: str | None = None,
    ) -> None:
        folder = Path(checkpoint)
        self.config = read_config(folder)
        self.vocabulary = Vocabulary.of(self.config)
        self.shapes = weight_shapes(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        visual = load_visual_tokenizer(folder / VISUAL_TOKENIZER).to(device)
        limit = self.config.text_config.max_position_embeddings  # type: ignore[union-attr]
        self.codec = PromptCodec(DinaProcessor.from_pretrained(folder), visual, limit)
        self.dtype = dtype
        self.version = 0
        self.numbers = count()
        self.running: set[str] = set()
        if threads:
            torch.set_num_threads(threads)
        prepare_process()
        check_vllm(weight_transfer is not None)
        self._owns_groups = no_groups_yet()
        settings: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": limit,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_batched_tokens,
            "enable_prefix_caching": prefix_caching,
            "enforce_eager": not compile,
            "num_gpu_blocks_override": kv_blocks,
            "tensor_parallel_size": tensor_parallel,
        }
        if block_size:
            settings["block_size"] = block_size
        self.llm = start_vllm(settings, self.config.levels, kv_cache_gib, gpu_memory, weight_transfer)

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]:
        """Yields each sample when it is finished, in whatever order that is.

        Raises:
            DinaError: a prompt does not fit the context, or ``sampling`` asks for guidance or a repetition
                penalty, which only the torch engine has.
        """
        inputs = self.codec.encode(requests, sampling)
        for finished in self._run(inputs, sampling):
            yield from self.codec.samples(requests, finished, self.version)

    def continue_streams(
        self, inputs: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> Iterator[Generation]:
        """``dina.model.generation.generate`` with this engine: streams instead of prompts."""
        for finished in self._run(inputs, sampling):
            yield from finished

    def probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> list[Tensor]:
        """Log-probabilities ``[T, C]`` of the actions of given streams, 0 at everything else.

        They are computed as samples are, position by position through the cache, with the given actions in
        place of drawn ones. Compare them with the learner's (``dina.rollout.probe``) after a weight update.

        Args:
            streams: single rows without padding, such as ``Sample.stream``.
        """
        inputs = [_prompt_of(stream, self.vocabulary) for stream in streams]
        found = {g.index: g.logps for part in self._run(inputs, sampling, streams) for g in part}
        for index, stream in enumerate(streams):
            if len(found[index]) != stream.length:
                raise DinaError(
                    f"stream {index} to probe has {stream.length} positions, but a sample of its layout would end "
                    f"after {len(found[index])}"
                )
        return [found[index] for index in range(len(streams))]

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces all weights in place; samples drawn afterwards carry ``version``.

        Args:
            tensors: every parameter of the checkpoint under its own name, on any device and in any dtype.

        Raises:
            DinaError: requests are running, a name is unknown or missing, or a shape is wrong; the old weights
                stay then.
        """
        self._refuse_while_running()
        weights = [(name, tensor.detach()) for name, tensor in tensors]
        self._check_weights(weights)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._finish_update(version)

    def transfer_weights(
        self, step: Literal["init", "start", "update", "finish"], info: Any, version: int
    ) -> None:
        """One step of vLLM's own weight transfer (``weight_transport.WeightSender``), on GPU.

        Raises:
            DinaError: requests are running.
        """
        self._refuse_while_running()
        method = {
            "init": "init_weight_transfer_engine",
            "start": "start_weight_update",
            "update": "update_weights",
            "finish": "finish_weight_update",
        }[step]
        self.llm.collective_rpc(method, args=() if info is None else (info,))
        if step == "finish":
            self._finish_update(version)

    def _finish_update(self, version: int) -> None:
        """Stamps new weights, and forgets what was computed with the old ones."""
        if not self.llm.reset_prefix_cache():
            raise DinaError("vLLM could not reset its prefix cache after a weight update: blocks are in use")
        self.version = version

    def close(self) -> None:
        """Ends vLLM and gives its memory back. Further calls do nothing."""
        llm, self.llm = self.llm, None
        if llm is None:
            return
        llm.engine_core.shutdown()
        if self._owns_groups:
            from vllm.distributed.parallel_state import (
                destroy_distributed_environment,
                destroy_model_parallel,
            )

            destroy_model_parallel()
            destroy_distributed_environment()

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuses prompts that do not fit with what follows them, before anything is drawn.

        Raises:
            DinaError: names the first prompt that is too long.
        """
        self.codec.check_lengths(prompts, sampling)

    def _run(
        self,
        inputs: Sequence[GenerationRequest],
        sampling: SamplingParams,
        forced: Sequence[TokenStream] | None = None,
    ) -> Iterator[list[Generation]]:
        """What finishes together, as lists. Leaving the iterator early ends the rest."""
        if problem := refusal(sampling):
            raise DinaError(f"{problem}; set it to 1, or use rollout.engine=torch")
        sampling.check_levels(self.config.levels)
        self._refuse_while_running()
        index_of: dict[str, int] = {}
        try:
            for index, request in enumerate(inputs):
                name = str(next(self.numbers))
                self.running.add(name)
                self._add(name, request, sampling, None if forced is None else forced[index])
                index_of[name] = index
            while self.running:
                finished = []
                for output in self._step():
                    self.running.discard(output.request_id)
                    index = index_of[output.request_id]
                    answer = output.outputs[0]
                    finished.append(
                        unpack(
                            index,
                            inputs[index],
                            self.vocabulary,
                            list(answer.token_ids),
                            answer.logprobs.token_ids,
                            answer.logprobs.logprobs,
                        )
                    )
                if finished:
                    yield finished
        finally:
            if self.running:
                if self.llm is not None:
                    self.llm.abort_request(list(self.running))
                self.running.clear()

    def _step(self) -> list[Any]:
        try:
            return self.llm.step()
        except Exception as error:  # whatever failed inside, vLLM's state is no longer to be trusted
            self.running.clear()
            self.close()
            raise DinaError(
                f"vLLM failed while drawing ({error!r}); the engine is closed, open a new one"
            ) from error

    def _add(
        self, name: str, request: GenerationRequest, sampling: SamplingParams, forced: TokenStream | None
    ) -> None:
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        drawing = self.vocabulary.draws(request)
        if drawing and request.grid is None:
            raise ValueError("a prompt that ends in the image-start token needs a grid")
        longest = self.vocabulary.longest(request, sampling)
        if forced is not None:
            longest = forced.length - request.prompt.length
        prompt: dict[str, Any] = {"prompt_token_ids": request.prompt.text_ids[0].tolist()}
        if (salt := cache_salt(request.prompt)) is not None:
            prompt["cache_salt"] = salt
        params = VllmSamplingParams(
            seed=request.seed,
            max_tokens=longest,
            logprobs=2 * self.config.levels - 1,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            stop_token_ids=self.vocabulary.stop_ids(request),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=pack(request, sampling, forced),
        )
        self.llm.add_request(name, prompt, params)

    def _refuse_while_running(self) -> None:
        if self.llm is None:
            raise DinaError("this vLLM engine is closed")
        if self.running:
            raise DinaError(
                f"the vLLM engine still draws {len(self.running)} samples; read the iterator of generate() to its "
                "end, or close it, first"
            )

    def _check_weights(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        given = {name: tuple(tensor.shape) for name, tensor in weights}
        for name, shape in given.items():
            if name not in self.shapes:
                raise DinaError(f"weight update: the model has no parameter {name}")
            if shape != self.shapes[name]:
                raise DinaError(f"weight update: {name} has shape {shape}, the model {self.shapes[name]}")
        missing = sorted(set(self.shapes) - set(given))
        if missing:
            raise DinaError(
                f"weight update: {len(missing)} parameters are missing, the first is {missing[0]}; vLLM joins "
                "some weights to one, so an update must be whole"
            )


def _prompt_of(stream: TokenStream, vocabulary: Vocabulary) -> GenerationRequest:
    """The stream up to its first action, as a request whose grid is that of the picture drawn."""
    acts = stream.actions[0].any(1).nonzero()
    if not len(acts):
        raise DinaError("a stream to probe has no action")
    first = int(acts[0])
    drawn = stream.actions[0, :, 1].nonzero()
    grid = None
    if len(drawn):
        ids = stream.text_ids[0, int(drawn[0]) :]
        ends = (ids == vocabulary.layout.end).nonzero()
        ids = ids[: int(ends[0])] if len(ends) else ids
        height = 1 + int((ids == vocabulary.layout.newline).sum())
        grid = (height, int((ids == vocabulary.layout.pad).sum()) // height)
    return GenerationRequest(stream.before(first), seed=0, grid=grid)


def refusal(sampling: SamplingParams) -> str | None:
    """What this engine cannot do of ``sampling``; ``None`` if it can do all of it."""
    if sampling.guided:
        return f"guidance_scale={sampling.guidance_scale}: vLLM draws without classifier-free guidance"
    if sampling.repetition_penalty != 1:
        return f"repetition_penalty={sampling.repetition_penalty}: vLLM draws pictures and text without it"
    return None
