from __future__ import annotations

import numpy as np
import pytest

from dina.rewards.guards import (
    batch_guards,
    color_entropy,
    color_histogram,
    dark_share,
    diversity,
    edge_density,
    jpeg_size,
    unique_ratio,
)
from dina.rewards.protocol import SuiteResult
from tests.rewards.samples import answer, picture

RED, BLACK, WHITE = (200, 30, 30), (0, 0, 0), (255, 255, 255)


def plain(color=WHITE, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.full((*size, 3), color, dtype=np.uint8)


def square(x: int = 16, y: int = 16, side: int = 16, color=RED, ground=WHITE) -> np.ndarray:
    image = plain(ground)
    image[y : y + side, x : x + side] = color
    return image


def noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noisy = image + np.random.default_rng(seed).normal(0, sigma, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def test_dark_share_counts_dark_pixels():
    assert dark_share(plain(BLACK)) == 1.0
    assert dark_share(plain(WHITE)) == 0.0
    assert dark_share(square(side=32, color=BLACK)) == 0.25
    assert dark_share(plain((255, 0, 0))) == 0.0


def test_edge_density_counts_the_outline():
    assert edge_density(plain()) == 0.0
    # 16 pixels left of and above the square, and its own right column and lower row, which share a corner
    assert edge_density(square(side=16)) == (16 + 16 + 16 + 15) / 64**2
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    assert edge_density(np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)) > 0.99
    assert edge_density(plain(size=(1, 1))) == 0.0


def test_color_entropy_is_in_bits():
    assert color_entropy(plain()) == 0.0
    halves = plain()
    halves[:32] = RED
    assert color_entropy(halves) == pytest.approx(1.0)
    assert 7.0 < color_entropy(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)) <= 9.0


def test_jpeg_size_grows_with_detail():
    busy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert jpeg_size(plain()) < jpeg_size(square()) < jpeg_size(busy)


def test_unique_ratio_sees_through_noise_and_tells_scenes_apart():
    scenes = [square(), square(x=24), square(color=(30, 30, 200)), square(side=8)]
    assert unique_ratio(scenes) == 1.0
    assert unique_ratio([noise(square(), 5, seed) for seed in range(8)]) == 1 / 8
    assert unique_ratio([square(), square(), square(x=24), square(x=24)]) == 0.5
    assert unique_ratio([noise(square(), 5, seed) for seed in range(8)], tolerance=0.0) == 1.0


def test_diversity_is_the_mean_difference_of_pairs():
    assert diversity([square(), square()]) == 0.0
    assert diversity([plain(BLACK), plain(WHITE)]) == pytest.approx(1.0)
    assert diversity([plain(BLACK), plain(WHITE), plain(WHITE)]) == pytest.approx(2 / 3)
    assert diversity([plain()]) == 0.0
    assert diversity([plain(), plain(size=(64, 96))]) == 0.0


def test_color_histogram_weighs_every_picture_the_same():
    red, blue = square(), square(color=(30, 30, 200))
    both = color_histogram([red, blue])
    assert both.sum() == pytest.approx(1.0)
    assert both == pytest.approx((color_histogram([red]) + color_histogram([blue])) / 2)
    assert color_histogram([red]) == pytest.approx(color_histogram([square(x=40)]))


def test_batch_guards_of_a_healthy_and_of_a_hacked_batch():
    healthy = [picture(square(x=8 * i, y=8 * g), group=g) for g in range(2) for i in range(4)]
    hacked = [picture(square(ground=BLACK, color=WHITE), group=g) for g in range(2) for i in range(4)]
    before, after = batch_guards(healthy), batch_guards(hacked)
    assert before["guards/dark_share"] == 0.0 and after["guards/dark_share"] > 0.9
    assert before["guards/unique_ratio"] == 1.0 and after["guards/unique_ratio"] == 1 / 8
    assert before["guards/diversity"] > 0.03 and after["guards/diversity"] == 0.0
    assert {"guards/edge_density", "guards/color_entropy", "guards/jpeg_size"} <= before.keys()


def test_batch_guards_take_excess_from_the_parts_of_rewards():
    scored = SuiteResult(
        total=[1.0, 1.0],
        per_reward={"objects": [1.0, 1.0], "sign": [1.0, None]},
        parts={
            "objects": [{"excess_objects": 3.0, "count": 1.0}, {"excess_objects": 1.0}],
            "sign": [{"excess_text": 0.25, "reason": "read much"}, None],
        },
        failures=[],
        seconds={"objects": 0.0, "sign": 0.0},
    )
    guards = batch_guards([picture(), picture()], scored)
    assert guards["guards/excess_objects"] == 2.0
    assert guards["guards/excess_text"] == 0.25
    assert "guards/count" not in guards


def test_batch_without_pictures_has_no_guards():
    assert batch_guards([answer("3")]) == {}
    assert batch_guards([]) == {}
    assert "guards/diversity" not in batch_guards([picture()])
