from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dina.model.depth_head import DepthHead
from dina.model.embeddings import CodeEmbedding
from dina.model.sampling import guide
from tests.golden import load_golden, relative_error, weights_of


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], DepthHead, CodeEmbedding, nn.Embedding]:
    tensors, metadata = load_golden("depth_head")
    config = metadata["config"]
    head = DepthHead(
        config["hidden_size"],
        config["image_head_transformer_dims"],
        config["image_head_transformer_layers"],
        config["image_head_transformer_ffn_scale"],
        config["codebook_sizes"],
        eps=config["rms_norm_eps_head"],
        unused_bias=True,
    )
    head.load_state_dict(weights_of(tensors, ("embed_tokens",)))
    table = nn.Embedding.from_pretrained(tensors["embed_tokens.weight"])
    embedding = CodeEmbedding(config["hidden_size"], 8, config["codebook_sizes"], config["visual_offset"])
    return tensors, head.eval(), embedding, table


def test_teacher_forced_logits(golden: tuple) -> None:
    tensors, head, embedding, table = golden
    codes = tensors["in.codes"]
    logits = head(tensors["in.hidden"], embedding.embed_levels(codes, table))
    for level, level_logits in enumerate(logits):
        assert relative_error(level_logits, tensors[f"out.logits.{level}"]) < 1e-5
        over_all = level_logits.log_softmax(-1).gather(1, codes[:, level : level + 1])[:, 0]
        over_codes = level_logits[:, :-1].log_softmax(-1).gather(1, codes[:, level : level + 1])[:, 0]
        assert relative_error(over_all, tensors["out.logp_over_C_plus_1"][:, level]) < 1e-5
        assert relative_error(over_codes, tensors["out.logp_over_C"][:, level]) < 1e-5


@pytest.mark.parametrize("masked", [True, False])
def test_greedy_codes(golden: tuple, masked: bool) -> None:
    tensors, head, embedding, table = golden
    codes = head.sample(
        tensors["in.hidden"],
        lambda codes, level: embedding.embed_level(codes, level, table),
        lambda logits, level: (logits[:, :-1] if masked else logits).argmax(-1),
    )
    expected = tensors["out.greedy_codes_masked" if masked else "out.greedy_codes_unmasked"]
    assert torch.equal(codes, expected)


@pytest.mark.parametrize(("scale", "name"), [(3.0, "cfg3"), (1.8, "cfg1p8")])
def test_guided_greedy_codes(golden: tuple, scale: float, name: str) -> None:
    tensors, head, embedding, table = golden
    rows = tensors["in.hidden"].shape[0]

    def choose(logits: Tensor, level: int) -> Tensor:
        cond, uncond = logits[:rows], logits[rows:]
        return guide(cond, uncond, scale)[:, :-1].argmax(-1).repeat(2)

    codes = head.sample(
        torch.cat([tensors["in.hidden"], tensors["in.hidden_uncond"]]),
        lambda codes, level: embedding.embed_level(codes, level, table),
        choose,
    )
    assert torch.equal(codes[:rows], tensors[f"out.greedy_codes_{name}"])


def test_guided_logits(golden: tuple) -> None:
    tensors, head, embedding, table = golden
    embeddings = embedding.embed_levels(tensors["in.codes"], table)
    cond = head(tensors["in.hidden"], embeddings)
    uncond = head(tensors["in.hidden_uncond"], embeddings)
    for level, (c, u) in enumerate(zip(cond, uncond, strict=True)):
        assert relative_error(guide(c, u, 3.0), tensors[f"out.cfg3_logits.{level}"]) < 1e-5


def test_later_codes_do_not_reach_earlier_levels() -> None:
    torch.manual_seed(0)
    head = DepthHead(24, 32, 2, 4, [8, 8, 8, 8], head_dim=16)
    hidden, embeddings = torch.randn(3, 24), torch.randn(3, 4, 24)
    before = head(hidden, embeddings)
    embeddings[:, 2] += 1
    after = head(hidden, embeddings)
    assert all(torch.equal(before[level], after[level]) for level in range(3))
    assert not torch.allclose(before[3], after[3])


def test_stepwise_equals_teacher_forced() -> None:
    torch.manual_seed(0)
    head = DepthHead(24, 32, 2, 4, [8, 6, 5, 7], head_dim=16)
    embedding = CodeEmbedding(24, 8, [8, 6, 5, 7], visual_offset=3)
    table = nn.Embedding(3 + 26, 24)
    hidden, seen = torch.randn(5, 24), []

    def choose(logits: Tensor, level: int) -> Tensor:
        seen.append(logits)
        return logits[:, :-1].argmax(-1)

    codes = head.sample(hidden, lambda c, level: embedding.embed_level(c, level, table), choose)
    forced = head(hidden, embedding.embed_levels(codes, table))
    for stepwise, whole in zip(seen, forced, strict=True):
        torch.testing.assert_close(stepwise, whole, atol=1e-5, rtol=1e-5)


def test_widths_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of head_dim 128"):
        DepthHead(24, 100, 1, 4, [8, 8])
