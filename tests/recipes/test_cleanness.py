from __future__ import annotations

import numpy as np
from PIL import Image

from dina.recipes.scenes.cleanness import cleanness
from dina.recipes.scenes.measure import blurred, noisy, scenes, text_scenes
from dina.recipes.scenes.world import render


def test_clean_drawings_of_any_content_score_alike_and_spoilt_ones_lower() -> None:
    drawn = [render(scene) for scene in [*scenes(10, 0), *text_scenes(5, 0)]]
    rng = np.random.default_rng(0)
    spoilt = {
        "noise": [noisy(image, 10, rng) for image in drawn],
        "blur": [blurred(image, 1.0) for image in drawn],
    }
    clean = cleanness([Image.fromarray(image) for image in drawn])
    assert min(clean) > 0.9
    for images in spoilt.values():
        worse = cleanness([Image.fromarray(image) for image in images])
        assert all(a > b for a, b in zip(clean, worse, strict=True))


def test_a_picture_of_colours_that_the_world_lacks_scores_zero() -> None:
    assert cleanness([Image.new("RGB", (8, 8), (120, 120, 60))]) == [0.0]
