"""How an action is drawn from logits, and its probability under exactly that distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dina.errors import DinaError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


@dataclass(frozen=True)
class SamplingParams:
    """The distribution to sample from. Text and codes have their own truncation; 0 and 1 mean "off".

    The log-probabilities that generation reports, and those that training recomputes, are of the
    distribution these values define (after guidance, temperature and truncation).

    Attributes:
        temperature: of the text channel; 0 is greedy.
        code_temperature: of the code levels, one number for all or one for each; ``None`` takes ``temperature``.
        top_k, top_p: truncation of the text channel.
        code_top_k: truncation of the code levels, one number for all or one for each.
        code_top_p: truncation of every code level.
        top_p_over: what ``top_p`` is a share of when top-k cuts too: the classes that top-k left
            (``kept``, as Hugging Face and vLLM do) or the whole softmax (``all``, as LongCat's engine does).
        repetition_penalty: divides positive and multiplies negative logits of classes the row has already
            drawn on the same channel; 1 is off.
        guidance_scale: ``s`` in ``z = s (z_cond - z_uncond) + z_uncond`` on code levels; 1 is off.
        max_new_tokens: bound on sampled text tokens.
    """

    temperature: float = 1.0
    code_temperature: float | tuple[float, ...] | None = None
    top_k: int = 0
    top_p: float = 1.0
    code_top_k: int | tuple[int, ...] = 0
    code_top_p: float = 1.0
    top_p_over: Literal["kept", "all"] = "kept"
    repetition_penalty: float = 1.0
    guidance_scale: float = 1.0
    max_new_tokens: int = 64

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    def shape_text(self, logits: Tensor) -> Tensor:
        return shape_logits(logits, self.temperature, self.top_k, self.top_p, self.top_p_over)

    def shape_codes(self, logits: Tensor, level: int) -> Tensor:
        temperature = self.temperature if self.code_temperature is None else self.code_temperature
        if isinstance(temperature, tuple):
            temperature = temperature[level]
        top_k = self.code_top_k[level] if isinstance(self.code_top_k, tuple) else self.code_top_k
        return shape_logits(logits, temperature, top_k, self.code_top_p, self.top_p_over)

    def check_levels(self, levels: int) -> None:
        """Raises: DinaError: a value per level is given, and not for as many levels as the model has."""
        for name in ("code_temperature", "code_top_k"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise DinaError(f"{name} has {len(value)} numbers; the model has {levels} code levels")


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits (docs/format.md): ``scale (cond - uncond) + uncond``."""
    return scale * (cond - uncond) + uncond


def penalise_repeats(logits: Tensor, past: Tensor, penalty: float) -> Tensor:
    """Repetition penalty of Keskar et al. 2019 on ``[N, K]`` logits; ``past`` ``[N, P]`` class ids, -1 = none."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen.scatter_(1, past.clamp_min(0), past >= 0)
    # scatter_ of several entries to one cell keeps an arbitrary one, so a -1 (read as class 0) must not hide a 0.
    seen[:, 0] = (past == 0).any(1)
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def shape_logits(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, top_p_over: str = "kept"
) -> Tensor:
    """Log-probabilities ``[..., K]`` float32 after temperature, top-k and top-p.

    Greedy (temperature 0) puts all mass on the most probable class, so its log-probability is 0.
    """
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, 0.0)
    logits = logits / temperature
    whole = logits
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        base = whole if top_p_over == "all" else logits
        ordered, order = base.softmax(-1).sort(-1, descending=True)
        # A class stays while the mass before it is below top_p, so the first one always stays.
        keep = (ordered.cumsum(-1) - ordered) < top_p
        logits = logits.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), -math.inf)
    return logits.log_softmax(-1)


def entropy_of(log_probs: Tensor) -> Tensor:
    """Entropy in nats over the last axis; classes of probability 0 count nothing."""
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == -math.inf, 0.0)).sum(-1)


def draw(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Gumbel-max: an exact sample ``[...]`` of the distribution ``[..., K]``, given Gumbel noise ``[..., K]``."""
    return (log_probs + noise).argmax(-1)


def counter_gumbel(seeds: Tensor, positions: Tensor, channel: int, classes: int) -> Tensor:
    """Gumbel noise ``[N, classes]`` float32 that depends on (seed, position, channel, class) alone.

    A sample is therefore the same whatever else is in the batch, after a preemption, and on any worker.

    Args:
        seeds: ``[N]`` int64, one per request.
        positions: ``[N]`` int64, absolute position in the unpadded stream.
        channel: 0 for text, ``1 + l`` for level ``l``.
        classes: number of classes.
    """
    key = _mix(seeds * _GOLDEN + positions)
    key = _mix(key ^ (channel + 1))
    counters = torch.arange(1, classes + 1, device=seeds.device, dtype=torch.int64)
    bits = _logical_shift(_mix(key[:, None] + counters * _GOLDEN), 11)
    uniform = (bits.double() + 0.5) * 2.0**-53
    return (-(-uniform.log()).log()).float()


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), on wrapping int64."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)
