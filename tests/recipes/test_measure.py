"""Measuring a tokenizer: a perfect one scores all, an untrained one loads, runs and scores nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dina.errors import DinaError
from dina.model.vision_config import DinaVisionConfig
from dina.model.visual_tokenizer import DinaVisualTokenizer
from dina.recipes.scenes.measure import load_tokenizer, main, measure_tokenizer, reconstruct
from dina.recipes.scenes.world import Scene, render


class Lossless:
    """Encodes a picture as itself."""

    device = torch.device("cpu")

    def encode(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return images

    decode = encode


def test_a_lossless_tokenizer_is_read_alike_everywhere():
    lines = list(measure_tokenizer(Lossless(), count=8, seed=0, words_count=8))
    assert len(lines) == 4 and all("100.00 %" in line and "n=8" in line for line in lines)


def test_reconstruction_keeps_size_and_order():
    pictures = [render(Scene(width=w, height=h)) for w, h in ((64, 64), (96, 64), (64, 96))] * 15
    pictures = [np.minimum(p, i).astype(np.uint8) for i, p in enumerate(pictures)]
    again = reconstruct(Lossless(), pictures)
    assert all((a == b).all() and a.dtype == np.uint8 for a, b in zip(pictures, again, strict=True))


def test_an_untrained_tokenizer_reads_nothing_alike(tmp_path, capsys):
    DinaVisualTokenizer(DinaVisionConfig()).save_pretrained(tmp_path / "visual_tokenizer")
    assert load_tokenizer(tmp_path / "visual_tokenizer").pixels_per_token == 8
    main(["--tokenizer", str(tmp_path), "--count", "6"])
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("tokenizer")]
    assert len(lines) == 4 and all("  0.00 %" in line for line in lines)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(DinaError, match="holds no visual tokenizer"):
        load_tokenizer(tmp_path)
