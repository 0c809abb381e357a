from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dina.rollout.depth_sampler import DepthSampler
from tests.model.tiny import tiny_model


@pytest.mark.parametrize("backbone", ["qwen2", "llama"])
def test_it_draws_what_the_depth_head_draws(backbone: str) -> None:
    model = tiny_model(backbone)
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    table = model.get_input_embeddings()
    seen: dict[str, list[Tensor]] = {"head": [], "sampler": []}

    def draw(name: str) -> Tensor:
        def choose(logits: Tensor, level: int) -> Tensor:
            seen[name].append(logits)
            return logits[:, :-1].argmax(-1)

        def embed(codes: Tensor, level: int) -> Tensor:
            return model.code_embedding.embed_level(codes, level, table)

        sampler = model.visual_head if name == "head" else DepthSampler(model.visual_head)
        return sampler.sample(hidden, embed, choose)

    with torch.no_grad():
        wanted, found = draw("head"), draw("sampler")
    assert torch.equal(found, wanted)
    for a, b in zip(seen["sampler"], seen["head"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
