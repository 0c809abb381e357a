"""The reference rollout engine: generation in plain torch, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dina.errors import DinaError
from dina.model.checkpoint import Checkpoint
from dina.model.generation import Distort, generate
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rollout.encoding import PromptCodec
from dina.rollout.protocol import Prompt, Request, Sample


class TorchEngine:
    """Draws samples with the model of a checkpoint.

    Args:
        checkpoint: its model is used as it is, so a trainer in the same process may share it; then
            ``update_weights`` only stamps the version.
        batch_size: requests drawn at once.
        dtype: ``bfloat16`` computes under autocast; the weights stay as they are.
        distort: see ``model.generation.generate``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batch_size: int = 64,
        dtype: str = "float32",
        distort: Distort | None = None,
    ) -> None:
        self.dtype, self.distort = dtype, distort
        self.model = checkpoint.model
        limit = self.model.config.text_config.max_position_embeddings
        self.codec = PromptCodec(checkpoint.processor, checkpoint.visual_tokenizer, limit)
        self.batch_size = batch_size
        self.version = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]:
        """Yields each sample when it is finished.

        Raises:
            DinaError: a prompt does not fit the context.
        """
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                inputs = self.codec.encode(batch, sampling)
                with autocast(self.model.device, self.dtype):
                    generations = list(generate(self.model, inputs, sampling, self.distort))
                yield from self.codec.samples(batch, generations, self.version)
        finally:
            self.model.train(training)

    def probe(self, streams: Sequence[TokenStream], sampling: SamplingParams) -> list[Tensor]:
        """Log-probabilities ``[T, C]`` of the actions of given single-row streams, 0 at everything else."""
        training = self.model.training
        self.model.eval()
        logps: list[Tensor] = []
        try:
            with torch.no_grad(), autocast(self.model.device, self.dtype):
                for start in range(0, len(streams), self.batch_size):
                    chosen = streams[start : start + self.batch_size]
                    batch = TokenStream.collate(chosen, self.model.config.pad_token_id or 0)
                    rows, _ = self.model.log_probs_and_entropy(batch.to(self.model.device), sampling)
                    logps += [row[: s.length].cpu() for row, s in zip(rows, chosen, strict=True)]
        finally:
            self.model.train(training)
        return logps

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the named tensors into the model; tensors that are the model's own are left alone."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors:
                if name not in own:
                    raise DinaError(f"weight update: the model has no parameter {name}")
                if own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        self.version = version

    def close(self) -> None:
        """Nothing to release."""

    def check_lengths(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuses prompts that do not fit with what follows them, before anything is drawn.

        Raises:
            DinaError: names the first prompt that is too long.
        """
        self.codec.check_lengths(prompts, sampling)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Mixed precision for sampler and trainer alike; ``float32`` is none. Weights and optimizer stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
