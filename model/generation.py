"""Generation in plain torch: batched, cached, text and pictures in one stream. The golden reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dina.model.kv_cache import roomy_cache
from dina.model.layout import ImageLayout
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams, counter_gumbel, draw, entropy_of, guide, penalise_repeats
from dina.model.stream import TokenStream


@dataclass
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        prompt: a single row without padding. Ending in the image-start token, it is drawn as a picture and
            stops after it; otherwise text follows, until eos.
        seed: the only source of randomness.
        grid: (rows, columns) in tokens of a picture; needed wherever one is drawn.
    """

    prompt: TokenStream
    seed: int
    grid: tuple[int, int] | None = None


@dataclass
class Generation:
    """A finished request: its whole stream with ``actions`` set, and ``[T, C]`` statistics of each action."""

    index: int
    stream: TokenStream
    logps: Tensor
    entropies: Tensor
    finish_reason: Literal["stop", "length"]


@dataclass
class _Row:
    """The state of one running request."""

    grid: tuple[int, int] | None
    drawing: bool
    stop_after_image: bool
    image_step: int = 0
    texts: int = 0
    length: int = 0
    finish: Literal["stop", "length"] | None = None


Distort = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Log-probabilities ``[N, K]``, seeds ``[N]``, positions ``[N]`` and channel to the log-probabilities to draw from."""


@torch.no_grad()
def generate(
    model: DinaForConditionalGeneration,
    requests: Sequence[GenerationRequest],
    sampling: SamplingParams,
    distort: Distort | None = None,
) -> Iterator[Generation]:
    """Draws every request; yields each when it is finished.

    A sample depends on its own prompt, seed and grid alone, not on the batch it is drawn in.

    Args:
        distort: falsifies the distributions, and the probabilities reported with them; for studies of samplers.

    Raises:
        ValueError: a prompt that ends in the image-start token has no grid.
        DinaError: ``sampling`` is for another number of code levels.
    """
    sampling.check_levels(model.config.levels)
    if requests:
        yield from _Batch(model, requests, sampling, distort).run()


class _Batch:
    """Rows of the cache: one per running request, then one unconditional twin per running guided picture."""

    def __init__(
        self,
        model: DinaForConditionalGeneration,
        requests: Sequence[GenerationRequest],
        sampling: SamplingParams,
        distort: Distort | None = None,
    ) -> None:
        self.model, self.requests, self.sampling, self.distort = model, requests, sampling, distort
        self.config = model.config
        self.layout = ImageLayout.of(model.config)
        self.device = model.device
        self.rows = [self._start(request) for request in requests]
        self.running = list(range(len(requests)))
        guided = [i for i in self.running if sampling.guided and self.rows[i].drawing]
        self.twins = guided
        prompts = [r.prompt for r in requests] + [self._without_prompt(requests[i].prompt) for i in guided]
        self.inputs = TokenStream.collate(prompts, self.config.pad_token_id or 0, left=True).to(self.device)
        self.mask = self.inputs.attention_mask
        self.cache = roomy_cache()
        self.seeds = torch.tensor([r.seed for r in requests], device=self.device)
        self.prompt_lengths = torch.tensor([r.prompt.length for r in requests], device=self.device)
        steps = max(self._bound(row) for row in self.rows)
        count, levels = len(requests), self.config.levels
        self.ids = torch.zeros(count, steps, dtype=torch.long, device=self.device)
        self.codes = torch.full((count, steps, levels), -1, dtype=torch.long, device=self.device)
        self.actions = torch.zeros(count, steps, 1 + levels, dtype=torch.bool, device=self.device)
        self.logps = torch.zeros(count, steps, 1 + levels, device=self.device)
        self.entropies = torch.zeros_like(self.logps)

    def run(self) -> Iterator[Generation]:
        step = 0
        while True:
            hidden = self._forward()
            self._draw_texts(hidden, step)
            self._draw_codes(hidden, step)
            finished = [i for i in self.running if self._advance(i, step)]
            yield from (self._result(i) for i in finished)
            if len(finished) == len(self.running):
                return
            self._next_inputs(set(finished), step)
            step += 1

    def _start(self, request: GenerationRequest) -> _Row:
        drawing = int(request.prompt.text_ids[0, -1]) == self.layout.start
        if drawing and request.grid is None:
            raise ValueError("a prompt that ends in the image-start token needs a grid")
        return _Row(request.grid, drawing, stop_after_image=drawing)

    def _bound(self, row: _Row) -> int:
        image = row.grid[0] * (row.grid[1] + 1) if row.grid else 0
        return image if row.stop_after_image else self.sampling.max_new_tokens * (1 + image)

    def _without_prompt(self, prompt: TokenStream) -> TokenStream:
        """The unconditional prompt in the engine's form: size tag and image start alone (docs/format.md)."""
        tags = (prompt.text_ids[0] == self.layout.size_start).nonzero()
        start = int(tags[-1]) if len(tags) else prompt.length - 1
        return prompt.after(start)

    def _forward(self) -> Tensor:
        """Hidden states ``[P, H]`` of the newest position of every cache row."""
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -self.inputs.length :]
        output = self.model.model(
            inputs_embeds=self.model.embed_stream(self.inputs.text_ids, self.inputs.codes),
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def _draw_texts(self, hidden: Tensor, step: int) -> None:
        slots = [k for k, i in enumerate(self.running) if not self.rows[i].drawing]
        if not slots:
            return
        index = torch.tensor([self.running[k] for k in slots], device=self.device)
        logits = self.model.text_logits(hidden[slots])
        if self.sampling.repetition_penalty != 1:
            past = self.ids[index, :step].masked_fill(~self.actions[index, :step, 0], -1)
            logits = penalise_repeats(logits, past, self.sampling.repetition_penalty)
        self.ids[index, step] = self._draw(self.sampling.shape_text(logits), index, step, channel=0)

    def _draw_codes(self, hidden: Tensor, step: int) -> None:
        slots = [k for k, i in enumerate(self.running) if self._draws_patch(self.rows[i])]
        if not slots:
            return
        index = torch.tensor([self.running[k] for k in slots], device=self.device)
        count, first_twin = len(slots), len(self.running)
        if self.sampling.guided:
            # Rows that started a picture by themselves have no twin and are drawn without guidance.
            twin_of = {i: first_twin + k for k, i in enumerate(self.twins)}
            slots = slots + [twin_of.get(self.running[k], k) for k in slots]

        def choose(logits: Tensor, level: int) -> Tensor:
            logits = logits[:, :-1]
            if self.sampling.guided:
                logits = guide(logits[:count], logits[count:], self.sampling.guidance_scale)
            if self.sampling.repetition_penalty != 1:
                past = self.codes[index, :step, level]
                logits = penalise_repeats(logits, past, self.sampling.repetition_penalty)
            chosen = self._draw(self.sampling.shape_codes(logits, level), index, step, channel=1 + level)
            return chosen.repeat(2) if self.sampling.guided else chosen

        embedding, table = self.model.code_embedding, self.model.get_input_embeddings()
        codes = self.model.visual_head.sample(
            hidden[slots], lambda c, level: embedding.embed_level(c, level, table), choose
        )
        self.codes[index, step] = codes[:count]
        self.ids[index, step] = self.layout.pad

    def _draw(self, log_probs: Tensor, index: Tensor, step: int, channel: int) -> Tensor:
        """Draws one action per row and records its statistics."""
        position = self.prompt_lengths[index] + step
        if self.distort is not None:
            log_probs = self.distort(log_probs, self.seeds[index], position, channel)
        noise = counter_gumbel(self.seeds[index], position, channel, log_probs.shape[-1])
        chosen = draw(log_probs, noise)
        self.actions[index, step, channel] = True
        self.logps[index, step, channel] = log_probs.gather(1, chosen[:, None])[:, 0]
        self.entropies[index, step, channel] = entropy_of(log_probs)
        return chosen

    def _draws_patch(self, row: _Row) -> bool:
        return row.drawing and self.layout.drawn_step(row.image_step, *row.grid) == self.layout.pad  # type: ignore[misc]

    def _advance(self, index: int, step: int) -> bool:
        """Moves a row's state past ``step``; True when the row is finished."""
        row = self.rows[index]
        row.length = step + 1
        if row.drawing:
            assert row.grid is not None
            token = self.layout.drawn_step(row.image_step, *row.grid)
            self.ids[index, step] = token
            row.image_step += 1
            if token == self.layout.end:
                row.drawing = False
                row.finish = "stop" if row.stop_after_image else None
        else:
            token = int(self.ids[index, step])
            row.texts += 1
            starts = token == self.layout.start
            if token == self.config.eos_token_id or (starts and row.grid is None):
                row.finish = "stop"
            elif starts:
                row.drawing, row.image_step = True, 0
        if row.finish is None and not row.drawing and row.texts >= self.sampling.max_new_tokens:
            row.finish = "length"
        return row.finish is not None

    def _next_inputs(self, finished: set[int], step: int) -> None:
        """The newest tokens as inputs; finished rows leave the cache."""
        if finished:
            keep = [k for k, i in enumerate(self.running + self.twins) if i not in finished]
            self.cache.batch_select_indices(torch.tensor(keep, device=self.device))
            self.mask = self.mask[keep]
            self.running = [i for i in self.running if i not in finished]
            self.twins = [i for i in self.twins if i not in finished]
        index = torch.tensor(self.running + self.twins, device=self.device)
        self.inputs = TokenStream(
            self.ids[index, step, None],
            self.codes[index, step, None],
            self.mask.new_ones(len(index), 1),
            self.actions[index, step, None],
        )
        self.mask = torch.cat([self.mask, self.inputs.attention_mask], 1)

    def _result(self, index: int) -> Generation:
        prompt, length = self.requests[index].prompt.to(self.device), self.rows[index].length
        channels = self.logps.shape[-1]
        before = self.logps.new_zeros(prompt.length, channels)
        stream = TokenStream(
            torch.cat([prompt.text_ids, self.ids[index, None, :length]], 1),
            torch.cat([prompt.codes, self.codes[index, None, :length]], 1),
            torch.cat([prompt.attention_mask, prompt.attention_mask.new_ones(1, length)], 1),
            torch.cat([prompt.actions, self.actions[index, None, :length]], 1),
        )
        return Generation(
            index,
            stream.to("cpu"),
            torch.cat([before, self.logps[index, :length]]).cpu(),
            torch.cat([before, self.entropies[index, :length]]).cpu(),
            self.rows[index].finish or "length",
        )
