from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

from dina.errors import DinaError
from dina.model.vision_config import DinaVisionConfig
from dina.model.visual_tokenizer import DinaVisualTokenizer

SIZES = [(64, 64), (64, 96), (8, 8), (96, 64), (40, 16)]


@pytest.fixture(scope="module")
def tokenizer() -> DinaVisualTokenizer:
    torch.manual_seed(0)
    return DinaVisualTokenizer(DinaVisionConfig(vq_config={"depth": 3, "codebook_sizes": [16, 8, 4]})).eval()


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, h, w, generator=generator) for h, w in SIZES]


def test_any_grid_there_and_back(tokenizer: DinaVisualTokenizer) -> None:
    codes = tokenizer.encode(pictures())
    assert [tuple(c.shape) for c in codes] == [(h // 8, w // 8, 3) for h, w in SIZES]
    assert all(c.dtype == torch.int64 for c in codes)
    for image, (h, w) in zip(tokenizer.decode(codes), SIZES, strict=True):
        assert image.shape == (3, h, w)
        assert image.min() >= 0 and image.max() <= 1


def test_packing_changes_nothing(tokenizer: DinaVisualTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = tokenizer.encode(pictures())
    decoded = tokenizer.decode(together)
    monkeypatch.setattr("dina.model.visual_tokenizer._TOKENS_PER_CALL", 70)
    in_parts = tokenizer.encode(pictures())
    for image, codes, part, shown in zip(pictures(), together, in_parts, decoded, strict=True):
        assert torch.equal(codes, part)
        assert torch.equal(codes, tokenizer.encode([image])[0])
        assert torch.allclose(shown, tokenizer.decode([codes])[0], atol=1e-5)


def test_saved_in_half_precision(tokenizer: DinaVisualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_in(tmp_path, torch.float16)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds["visual_bridge_model.quantizer.quantize.codebooks.0.embed"] == torch.float32
    assert kinds["image_decoder.decoder_head.2.weight"] == torch.float16
    loaded = DinaVisualTokenizer.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert next(tokenizer.parameters()).dtype == torch.float32
    again = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    codes, same = loaded.encode(pictures()), again.encode(pictures())
    assert all(torch.equal(a, b) for a, b in zip(codes, same, strict=True))


def test_round_trip_in_full_precision(tokenizer: DinaVisualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = DinaVisualTokenizer.from_pretrained(tmp_path)
    state, other = tokenizer.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert loaded.config.vq_config.codebook_sizes == [16, 8, 4]


@pytest.mark.parametrize("image", [torch.rand(3, 60, 64), torch.rand(1, 64, 64), torch.zeros(3, 8, 8).byte()])
def test_bad_pictures(tokenizer: DinaVisualTokenizer, image: torch.Tensor) -> None:
    with pytest.raises(DinaError, match="picture 1"):
        tokenizer.encode([torch.rand(3, 8, 8), image])


@pytest.mark.parametrize(
    "codes", [torch.zeros(2, 2, 4).long(), torch.full((2, 2, 3), 9), torch.full((1, 1, 3), -1)]
)
def test_bad_codes(tokenizer: DinaVisualTokenizer, codes: torch.Tensor) -> None:
    with pytest.raises(DinaError, match="codes 0"):
        tokenizer.decode([codes])
