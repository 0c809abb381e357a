from __future__ import annotations

import numpy as np
import pytest

from dina.recipes.scenes import pictures
from dina.recipes.scenes.concepts import NOVEL_COMBOS, NOVEL_WORDS
from dina.recipes.scenes.shapes import GROUND, TOKEN
from dina.recipes.scenes.world import Scene, render


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """Every scene that is drawn while the test runs."""
    drawn: list[Scene] = []

    def note(scene: Scene) -> np.ndarray:
        drawn.append(scene)
        return render(scene)

    monkeypatch.setattr(pictures, "render", note)
    return drawn


@pytest.mark.parametrize("source", [pictures.training_pictures, pictures.whole_pictures])
def test_nothing_novel_is_ever_drawn(source, scenes: list[Scene]) -> None:
    list(source(count=400, seed=3))
    assert len(scenes) == 400
    assert not {obj.combo for scene in scenes for obj in scene.objects} & set(NOVEL_COMBOS)
    assert not {scene.text for scene in scenes} & set(NOVEL_WORDS)


def test_cut_outs_are_whole_tokens_with_something_on_them() -> None:
    for picture in pictures.training_pictures(count=100, seed=0):
        assert picture.shape[0] % TOKEN == 0 and picture.shape[1] % TOKEN == 0
        assert (picture != np.asarray(GROUND)).any()


def test_a_seed_fixes_the_pictures() -> None:
    first, again, other = (list(pictures.training_pictures(20, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, other, strict=True))
