from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dina.eval.pictures import (
    COLOURS,
    PictureStats,
    colour_shares,
    data_uri,
    histogram_similarity,
    picture_stats,
    png_bytes,
    read_picture,
)


def draw(colour: str, size: int = 32, ground: tuple[int, int, int] = (246, 246, 240)) -> np.ndarray:
    picture = np.full((size, size, 3), ground, dtype=np.uint8)
    picture[4:12, 4:12] = COLOURS[colour]
    return picture


def test_png_round_trip(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(picture))
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
    assert read_picture(tmp_path / "missing.png") is None
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert read_picture(tmp_path / "broken.png") is None


def test_large_pictures_shrink_inside_a_page():
    head, _, body = data_uri(np.zeros((600, 300, 3), np.uint8), max_side=100).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (50, 100)


@pytest.mark.parametrize("colour", [name for name in COLOURS if name != "white"])
def test_every_named_colour_is_found_and_the_ground_is_not(colour):
    assert colour_shares([draw(colour)])[colour] == 1.0


def test_noise_on_the_ground_is_ground():
    noisy = draw("red").astype(int) + np.random.default_rng(0).integers(-5, 5, (32, 32, 3))
    assert colour_shares([noisy.clip(0, 255).astype(np.uint8)])["red"] > 0.98


def test_a_lost_colour_lowers_the_similarity():
    before = colour_shares([draw(c) for c in ("red", "blue", "green", "yellow")])
    after = colour_shares([draw(c) for c in ("red", "blue", "green", "green")])
    assert histogram_similarity(before, before) == pytest.approx(1.0)
    assert histogram_similarity(before, after) == pytest.approx(0.75)
    assert np.isnan(histogram_similarity(before, colour_shares([])))


def test_statistics_of_varied_and_of_collapsed_samples():
    rng = np.random.default_rng(1)
    varied = [[rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)] for _ in range(3)]
    collapsed = [[group[0]] * 4 for group in varied]
    assert picture_stats(varied).unique_ratio == 1.0
    assert picture_stats(varied).diversity > 0.05
    stats = picture_stats(collapsed)
    assert (stats.unique_ratio, stats.unique_per_prompt, stats.diversity) == (0.25, 0.25, 0.0)
    assert PictureStats.from_json(stats.to_json()) == stats


def test_one_sample_per_prompt_has_no_spread():
    stats = picture_stats([[draw("red")], [draw("blue")], []])
    assert stats.pictures == 2 and np.isnan(stats.diversity)
    assert stats.to_json()["diversity"] is None
    assert np.isnan(picture_stats([]).unique_ratio)
