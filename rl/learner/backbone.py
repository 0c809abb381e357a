"""The decoder layers of a policy: what activation checkpointing recomputes and ZeRO-3 gathers one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dina.model.modeling import DinaForConditionalGeneration


def decoder_layers(model: DinaForConditionalGeneration) -> list[nn.Module]:
    """The backbone's outermost repeated layers; empty if it marks none as Hugging Face's models do."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in layers)
        if isinstance(module, GradientCheckpointingLayer) and not inner:
            layers[name] = module
    return list(layers.values())


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """In here, the layers keep their inputs alone, and a backward pass computes the rest again.

    Hugging Face's layers do so in training mode. Only the layers are put in it, not the modules inside them, whose
    dropout would change the probabilities. Outside, generation needs the layers as they are, for its cache.
    """
    for layer in layers:
        layer.training = True
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        layer._gradient_checkpointing_func = partial(
            checkpoint, use_reentrant=False, preserve_rng_state=False
        )  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
            layer.gradient_checkpointing = False  # type: ignore[assignment]
