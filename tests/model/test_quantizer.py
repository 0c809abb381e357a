from __future__ import annotations

import torch

from dina.model.quantizer import EmaCodebook, ResidualQuantizer, VisualQuantizer
from dina.model.vision_config import DinaQuantizerConfig
from tests.golden import load_golden, relative_error, weights_of


def test_golden_codes_and_partial_sums() -> None:
    tensors, metadata = load_golden("residual_vq")
    quantizer = VisualQuantizer(DinaQuantizerConfig(**metadata["config"]))
    quantizer.load_state_dict(weights_of(tensors))
    result = quantizer(tensors["in.features"])
    assert torch.equal(result.codes, tensors["out.codes"])
    assert relative_error(result.latents, tensors["out.quant_conv"]) < 1e-5
    assert relative_error(result.partial_sums, tensors["out.partial_sums"]) < 1e-5
    assert relative_error(result.reconstruction, tensors["out.reconstruction"]) < 1e-5
    rest = (result.latents - result.reconstruction).norm(dim=1)
    assert relative_error(rest, tensors["out.residual_norm"]) < 1e-5
    assert relative_error(quantizer.lookup(result.codes), tensors["out.reconstruction"]) < 1e-5


def small_config(**changes: object) -> DinaQuantizerConfig:
    fields = {"depth": 3, "codebook_size": 8, "codebook_dim": 4, "in_channels": 4, "quant_conv": False}
    return DinaQuantizerConfig(**{**fields, **changes})


def test_padding_row_is_never_chosen() -> None:
    book = EmaCodebook(8, 4)
    book.embed[:-1] += 10
    book.embed[-1] = 0
    assert (book.nearest(torch.zeros(5, 4)) < 8).all()


def test_ema_update_by_hand() -> None:
    book = EmaCodebook(2, 1)
    book.embed[:2, 0] = torch.tensor([0.0, 10.0])
    book.embed_ema.copy_(book.embed[:2] * 4)
    book.cluster_size_ema.fill_(4.0)
    x = torch.tensor([[1.0], [3.0], [12.0]])
    book.update(x, torch.tensor([0, 0, 1]), small_config(decay=0.5, smoothing=0.0))
    assert torch.allclose(book.cluster_size_ema, torch.tensor([3.0, 2.5]))
    assert torch.allclose(book.vectors[:, 0], torch.tensor([2 / 3, 26 / 2.5]))


def test_laplace_smoothing_pulls_sizes_together() -> None:
    book = EmaCodebook(2, 1)
    book.embed_ema.copy_(torch.tensor([[8.0], [2.0]]))
    book.cluster_size_ema.copy_(torch.tensor([8.0, 2.0]))
    book.update(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), small_config(decay=1.0, smoothing=1.0))
    assert torch.allclose(book.vectors[:, 0], torch.tensor([8 / (9 / 12 * 10), 2 / (3 / 12 * 10)]))


def test_dead_codes_restart_from_badly_served_vectors() -> None:
    torch.manual_seed(0)
    book = EmaCodebook(4, 2)
    book.embed[:-1] = torch.tensor([[0.0, 0.0], [9.0, 9.0], [8.0, 9.0], [9.0, 8.0]])
    book.embed_ema.copy_(book.vectors)
    book.cluster_size_ema.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    x = torch.tensor([[0.0, 0.0]] * 50 + [[-5.0, 0.0], [0.0, -5.0], [-5.0, -5.0]])
    codes = torch.zeros(len(x), dtype=torch.long)
    assert book.update(x, codes, small_config(smoothing=0.0)) == 3
    found = {tuple(row) for row in book.vectors[1:].tolist()}
    assert found == {(-5.0, 0.0), (0.0, -5.0), (-5.0, -5.0)}


def test_data_initialisation_beats_random_codes() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 4) + 5 * torch.randint(0, 3, (200, 1))
    quantizer = ResidualQuantizer(small_config())
    before = (quantizer(x).reconstruction - x).square().mean()
    quantizer.initialise(x)
    result = quantizer(x)
    after = (result.reconstruction - x).square().mean()
    assert after < 0.05 * before
    errors = (result.partial_sums - x).square().mean((1, 2))
    assert (errors.diff() < 0).all()


def test_initialisation_survives_repeated_vectors() -> None:
    quantizer = ResidualQuantizer(small_config())
    quantizer.initialise(torch.ones(50, 4))
    assert torch.allclose(quantizer(torch.ones(2, 4)).reconstruction, torch.ones(2, 4), atol=1e-3)


def test_straight_through_and_commitment() -> None:
    quantizer = ResidualQuantizer(small_config())
    x = torch.randn(6, 4, requires_grad=True)
    result = quantizer(x)
    assert torch.allclose(result.straight_through, result.reconstruction)
    result.straight_through.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    by_hand = torch.stack([(x - total).square().mean() for total in result.partial_sums]).mean()
    assert torch.allclose(result.commitment_loss(), by_hand)


def test_shared_codebook_stays_one_table() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(small_config(shared_codebook=True))
    x = torch.randn(100, 4)
    quantizer.initialise(x)
    quantizer.update(quantizer(x))
    first, *others = (book.embed for book in quantizer.codebooks)
    assert all(torch.equal(first, other) for other in others)


def test_float32_inside_autocast() -> None:
    quantizer = ResidualQuantizer(small_config())
    x = torch.randn(20, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = quantizer(x)
    assert result.reconstruction.dtype == torch.float32
    assert torch.equal(result.codes, quantizer(x).codes)
