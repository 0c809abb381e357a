"""The depth head at decoding speed: the sums of ``DepthHead.sample``, with weights laid out once for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dina.model.depth_head import DepthHead, DepthLayer


class DepthSampler:
    """Draws all levels of a position as ``head.sample`` does, with a third of its operations.

    A step of the depth head works on a few rows, so on any device its time is the number of operations. Query,
    key and value are one product, a norm is one call, the slices of a level lie by themselves, keys and values
    go into buffers, and the first slot, which sees itself alone, has no attention to compute.

    It holds copies of weights: make a new one when the head's weights change.
    """

    def __init__(self, head: DepthHead) -> None:
        self.head = head
        self.layers = [_PreparedLayer(layer) for layer in head.transformer_layers]  # type: ignore[arg-type]

    def sample(
        self,
        hidden: Tensor,
        embed_level: Callable[[Tensor, int], Tensor],
        choose: Callable[[Tensor, int], Tensor],
    ) -> Tensor:
        """As ``DepthHead.sample``: hidden states ``[N, H]`` to codes ``[N, L]``."""
        head, levels = self.head, self.head.levels
        caches = [layer.empty_cache(hidden, levels) for layer in self.layers]
        codes: list[Tensor] = []
        slot, prefix = hidden, None
        for level, classify in enumerate(head.heads):
            x = F.linear(_norm(slot, head.hidden_norm), head.hidden_proj.weight)
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer.step(x, level, cache)
            codes.append(choose(classify(_norm(x, head.headnorm)), level))
            if level + 1 < levels:
                embedded = embed_level(codes[-1], level)
                slot = prefix = embedded if prefix is None else prefix + embedded
        return torch.stack(codes, 1)


class _PreparedLayer:
    """The weights of one ``DepthLayer``, and its step over one slot of ``[N, D]``."""

    def __init__(self, layer: DepthLayer) -> None:
        attention = layer.self_attention
        self.norms = layer.layernorm1, layer.layernorm2
        self.heads = attention.heads
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        self.qkv = torch.cat([q.weight, k.weight, v.weight]).detach()
        self.qkv_bias = torch.cat([q.bias, torch.zeros_like(q.bias), v.bias]).detach()
        self.out = attention.out_proj
        up, down = layer._level_weights()
        self.up = [x.t().contiguous().detach() for x in up]
        self.down = [x.t().contiguous().detach() for x in down]

    def empty_cache(self, hidden: Tensor, levels: int) -> Tensor:
        """``[2, N, heads, L, d]``: keys, values."""
        width = self.qkv.shape[1]
        return hidden.new_empty(2, len(hidden), self.heads, levels, width // self.heads)

    def step(self, x: Tensor, level: int, cache: Tensor) -> Tensor:
        qkv = F.linear(_norm(x, self.norms[0]), self.qkv, self.qkv_bias)
        query, key, value = qkv.view(len(x), 3, self.heads, -1).unbind(1)
        cache[0, :, :, level], cache[1, :, :, level] = key, value
        if level == 0:
            seen = qkv[:, -x.shape[1] :]
        else:
            keys, values = cache[:, :, :, : level + 1]
            seen = F.scaled_dot_product_attention(query[:, :, None], keys, values).flatten(1)
        x = x + self.out(seen)
        inner = F.gelu(F.linear(_norm(x, self.norms[1]), self.up[level]))
        return x + F.linear(inner, self.down[level])


def _norm(x: Tensor, norm: torch.nn.Module) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)  # type: ignore[arg-type]
