"""Drawing text and codes inside vLLM's V1 model runner: one mixin for CPU and GPU.

Four overrides. ``_update_states`` removes vLLM's own generators; ``_preprocess`` writes the embeddings of image
positions; ``execute_model`` keeps vLLM from computing text logits for rows that draw codes; ``_sample`` draws
everything with the counter-based noise and the shaping functions of ``dina.model.sampling``, so that a sample
is that of the torch engine. ``vllm_compat`` checks their signatures before anything starts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import vllm.v1.worker.cpu_worker as cpu_worker
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from dina.errors import DinaError
from dina.model.sampling import SamplingParams, counter_gumbel, draw, entropy_of
from dina.rollout.protocol import derive_seed
from dina.rollout.vllm_compat import SUPPORTED
from dina.rollout.vllm_model import DinaForConditionalGeneration
from dina.rollout.vllm_wire import KEY, RowState


@dataclass
class _Rows:
    """Rows of one step that are drawn under the same sampling parameters."""

    index: list[int]
    states: list[RowState]
    positions: list[int]

    def add(self, index: int, state: RowState, position: int) -> None:
        self.index.append(index)
        self.states.append(state)
        self.positions.append(position)

    def __len__(self) -> int:
        return len(self.index)


class DinaRunnerMixin:
    """Needs one pipeline stage, no speculative decoding, and ``async_scheduling=False``."""

    model: DinaForConditionalGeneration
    requests: dict[str, Any]
    input_batch: Any
    device: torch.device
    execute_model_state: Any
    discard_request_mask: Any

    def _dina_state(self, request: Any) -> RowState:
        """The state hangs on vLLM's own record, which outlives preemption and ends with the request."""
        state = getattr(request, "dina_state", None)
        if state is None:
            given = request.sampling_params
            seed = derive_seed(request.req_id) if given.seed is None else given.seed
            plain = SamplingParams(
                temperature=given.temperature,
                top_k=max(given.top_k, 0),
                top_p=given.top_p,
                max_new_tokens=given.max_tokens,
            )
            fields = (given.extra_args or {}).get(KEY)
            vocabulary = self.model.vocabulary
            state = RowState(vocabulary, request.prompt_token_ids, seed, fields, plain)
            request.dina_state = state
        return state

    def _update_states(self, scheduler_output: Any) -> Any:
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        # vLLM rewinds the generators of partly prefilled rows, which CPU generators cannot do. Ours is a counter.
        batch = self.input_batch
        for index in batch.generators:
            self.requests[batch.req_ids[index]].generator = None
        batch.generators.clear()
        return result

    def _preprocess(
        self, scheduler_output: Any, num_input_tokens: int, intermediate_tensors: Any = None
    ) -> tuple[Any, ...]:
        out = super()._preprocess(scheduler_output, num_input_tokens, intermediate_tensors)  # type: ignore[misc]
        batch, start = self.input_batch, 0
        places, codes = [], []
        for row, request_id in enumerate(batch.req_ids):
            count = scheduler_output.num_scheduled_tokens[request_id]
            state = self._dina_state(self.requests[request_id])
            if state.has_codes:
                first = int(batch.num_computed_tokens_cpu[row])
                part = state.codes[first : first + count]
                drawn = np.nonzero(part[:, 0] >= 0)[0]
                if len(drawn):
                    places.append(drawn + start)
                    codes.append(part[drawn])
            start += count
        if places:
            where = torch.from_numpy(np.concatenate(places)).to(self.device)
            values = torch.from_numpy(np.concatenate(codes)).to(self.device).long()
            out[1][where] = self.model.embed_codes(values).to(out[1].dtype)
        return out

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        with self.model.deferred_logits():
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]

    def sample_tokens(self, grammar_output: Any) -> Any:
        state = self.execute_model_state
        self._hidden = None if state is None else state.sample_hidden_states
        return super().sample_tokens(grammar_output)  # type: ignore[misc]

    def _sample(self, logits: Tensor | None, spec_decode_metadata: Any) -> SamplerOutput:
        assert self._hidden is not None and spec_decode_metadata is None
        batch, levels = self.input_batch, self.model.vocabulary.levels
        tokens = torch.zeros(batch.num_reqs, 1, dtype=torch.int32)
        ids = torch.zeros(batch.num_reqs, 2 * levels, dtype=torch.int32)
        values = torch.zeros(batch.num_reqs, 2 * levels)
        texts: dict[SamplingParams, _Rows] = defaultdict(lambda: _Rows([], [], []))
        patches: dict[SamplingParams, _Rows] = defaultdict(lambda: _Rows([], [], []))
        for row, request_id in enumerate(batch.req_ids):
            if self.discard_request_mask.np[row]:
                continue  # its prompt is not complete yet
            state = self._dina_state(self.requests[request_id])
            position = int(batch.num_tokens_no_spec[row])
            kind = state.kind
            if kind == "text":
                texts[state.sampling].add(row, state, position)
            elif kind == "patch":
                patches[state.sampling].add(row, state, position)
            elif kind == "layout":
                tokens[row, 0] = state.layout_token
                state.add_layout()
            else:
                tokens[row, 0] = self.model.vocabulary.cut
        for sampling, rows in texts.items():
            self._draw_texts(sampling, rows, tokens, ids, values)
        for sampling, rows in patches.items():
            self._draw_patches(sampling, rows, tokens, ids, values)
        ranks = torch.zeros(batch.num_reqs, dtype=torch.int32)
        return SamplerOutput(tokens.to(self.device), LogprobsTensors(ids, values, ranks))

    def _draw_texts(
        self, sampling: SamplingParams, rows: _Rows, tokens: Tensor, ids: Tensor, values: Tensor
    ) -> None:
        hidden, seeds, positions = self._inputs(rows)
        log_probs = sampling.shape_text(self.model.text_logits(hidden))
        noise = counter_gumbel(seeds, positions, 0, log_probs.shape[-1])
        chosen = draw(log_probs, noise)
        if (forced := self._forced(rows)) is not None:
            chosen = torch.where(forced[:, 0] >= 0, forced[:, 0], chosen)
        logps = log_probs.gather(1, chosen[:, None])[:, 0]
        chosen = chosen.cpu()
        tokens[rows.index, 0] = ids[rows.index, 0] = chosen.int()
        values[rows.index, 0] = logps.cpu()
        values[rows.index, self.model.vocabulary.levels] = entropy_of(log_probs).cpu()
        for state, token in zip(rows.states, chosen.tolist(), strict=True):
            state.add_text(token)

    def _draw_patches(
        self, sampling: SamplingParams, rows: _Rows, tokens: Tensor, ids: Tensor, values: Tensor
    ) -> None:
        hidden, seeds, positions = self._inputs(rows)
        forced = self._forced(rows)
        noise = _noise_of_levels(seeds, positions, self.model.vocabulary.codebook_sizes)
        drawn: list[Tensor] = []

        def choose(logits: Tensor, level: int) -> Tensor:
            log_probs = sampling.shape_codes(logits[:, :-1], level)
            drawn.append(log_probs)
            chosen = draw(log_probs, noise[level, :, : log_probs.shape[-1]])
            if forced is not None:
                chosen = torch.where(forced[:, 1 + level] >= 0, forced[:, 1 + level], chosen)
            return chosen

        codes = self.model.sample_codes(hidden, choose)
        log_probs = _stack_classes(drawn)
        logps = log_probs.gather(2, codes[:, :, None])[:, :, 0]
        values[rows.index] = torch.cat([logps, entropy_of(log_probs)], 1).cpu()
        codes = codes.cpu()
        tokens[rows.index, 0] = self.model.vocabulary.code_ids(codes).int()
        ids[rows.index, : codes.shape[1]] = codes.int()
        for state, position, row in zip(rows.states, rows.positions, codes.int().numpy(), strict=True):
            state.add_patch(position, row)

    def _inputs(self, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states ``[N, H]``, seeds ``[N]`` and absolute positions ``[N]`` of rows to draw."""
        assert self._hidden is not None
        seeds = torch.tensor([state.seed for state in rows.states], device=self.device)
        positions = torch.tensor(rows.positions, device=self.device)
        return self._hidden[rows.index], seeds, positions

    def _forced(self, rows: _Rows) -> Tensor | None:
        """``[N, C]`` actions to score instead of drawing, -1 where none; ``None`` if no row has any."""
        if all(state.forced is None for state in rows.states):
            return None
        channels = 1 + self.model.vocabulary.levels
        out = np.full((len(rows), channels), -1, np.int64)
        for k, (state, position) in enumerate(zip(rows.states, rows.positions, strict=True)):
            given = state.forced_at(position)
            if given is not None:
                out[k] = given
        return torch.from_numpy(out).to(self.device)


def _noise_of_levels(seeds: Tensor, positions: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """``[L, N, max K]``, the noise of every level at once; that of a smaller codebook is its first classes."""
    levels, count = len(sizes), len(seeds)
    channels = torch.arange(1, 1 + levels, device=seeds.device).repeat_interleave(count)
    # A channel per row enters the same sums as one channel for all rows.
    noise = counter_gumbel(seeds.repeat(levels), positions.repeat(levels), cast(int, channels), max(sizes))
    return noise.view(levels, count, -1)


def _stack_classes(log_probs: list[Tensor]) -> Tensor:
    """Per level ``[N, K]`` to ``[N, L, max K]``; classes that a codebook does not have get -inf."""
    widest = max(x.shape[-1] for x in log_probs)
    return torch.stack([F.pad(x, (0, widest - x.shape[-1]), value=-math.inf) for x in log_probs], 1)


class DinaCPUModelRunner(DinaRunnerMixin, CPUModelRunner):  # type: ignore[misc]
    """vLLM's CPU runner for DiNA models."""


class DinaGPUModelRunner(DinaRunnerMixin, GPUModelRunner):  # type: ignore[misc]
    """vLLM's GPU runner (V1) for DiNA models. Its inherited methods are checked, it has not been run."""


class DinaCPUWorker(cpu_worker.CPUWorker):
    """``CPUWorker`` builds its runner inside ``init_device`` and has no hook for another class."""

    def init_device(self) -> None:
        set_num_threads, runner = torch.set_num_threads, cpu_worker.CPUModelRunner
        cpu_worker.CPUModelRunner = DinaCPUModelRunner  # type: ignore[misc]
        try:
            super().init_device()
        finally:
            cpu_worker.CPUModelRunner = runner  # type: ignore[misc]
            # vLLM makes it a no-op for the whole process, in which a trainer may live too.
            torch.set_num_threads = set_num_threads
        if not isinstance(self.model_runner, DinaCPUModelRunner):
            raise DinaError(f"this vLLM builds its CPU runner in a way of its own; supported: {SUPPORTED}")


class DinaGPUWorker(Worker):
    """The same on GPU, where vLLM offers a hook."""

    def _make_model_runner(self) -> GPUModelRunner:
        return DinaGPUModelRunner(self.vllm_config, self.device)
