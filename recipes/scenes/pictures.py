"""Pictures alone, for the tokenizer: seen combinations and words only, so that novel ones stay unseen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dina.recipes.scenes.concepts import SEEN_COMBOS, WORDS
from dina.recipes.scenes.shapes import LETTER_HEIGHT, LETTER_WIDTH, SIZES, TOKEN
from dina.recipes.scenes.world import Scene, render, sample_scene, sample_text_scene

_WORD_SHARE = 0.2
_WHOLE_SHARE = 0.2


def training_pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures ``[H, W, 3]`` uint8: a fifth whole, the rest one object or word, cut out of its scene.

    Three quarters of a whole picture's tokens are empty ground, which a tokenizer learns at once. Cuts follow the
    token lattice, so their tokens are those of whole pictures.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = _scene(rng)
        yield render(scene) if rng.random() < _WHOLE_SHARE else _cut_out(scene, rng)


def whole_pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures of scenes and words alone, as SFT sees them; for evaluation."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield render(_scene(rng))


def _scene(rng: np.random.Generator) -> Scene:
    if rng.random() < _WORD_SHARE:
        return sample_text_scene(rng, WORDS[int(rng.integers(len(WORDS)))])
    return sample_scene(rng, SEEN_COMBOS)


def _cut_out(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The least rectangle of whole tokens that holds one object, or the word."""
    if scene.text:
        left, top = scene.text_at or (0, 0)
        right, bottom = left + len(scene.text) * LETTER_WIDTH, top + LETTER_HEIGHT
    else:
        chosen = scene.objects[int(rng.integers(len(scene.objects)))]
        half = SIZES[chosen.size]
        left, top = chosen.cx - half, chosen.cy - half
        right, bottom = chosen.cx + half, chosen.cy + half
    rows = slice(top // TOKEN * TOKEN, -(-bottom // TOKEN) * TOKEN)
    columns = slice(left // TOKEN * TOKEN, -(-right // TOKEN) * TOKEN)
    return render(scene)[rows, columns]
