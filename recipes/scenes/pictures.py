"""Pictures alone, for the tokenizer: seen combinations and words only, so that novel ones stay unseen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dina.recipes.scenes.concepts import SEEN_COMBOS, WORDS
from dina.recipes.scenes.world import Scene, compose, render, sample_scene, sample_text_scene

_SMALL_CANVASES = ((40, 40), (40, 64), (64, 40))


def training_pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures ``[H, W, 3]`` uint8: scenes, words, and small cut-outs of scenes that are mostly object.

    The cut-outs keep the lattice, so their tokens are those of scenes, with less empty ground between them.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield render(_training_scene(rng))


def whole_pictures(count: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures of scenes and words alone, as SFT sees them; for evaluation."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield render(_word_scene(rng) if rng.random() < 0.2 else sample_scene(rng, SEEN_COMBOS))


def _training_scene(rng: np.random.Generator) -> Scene:
    kind = rng.random()
    if kind < 0.2:
        return _word_scene(rng)
    if kind < 0.5:
        return sample_scene(rng, SEEN_COMBOS)
    canvas = _SMALL_CANVASES[int(rng.integers(len(_SMALL_CANVASES)))]
    picks = rng.integers(len(SEEN_COMBOS), size=1 if canvas == (40, 40) else 2)
    sizes = ["small" if len(picks) > 1 or rng.random() < 0.35 else "large", "small"][: len(picks)]
    return compose(rng, [SEEN_COMBOS[i] for i in picks], sizes=sizes, canvas=canvas)


def _word_scene(rng: np.random.Generator) -> Scene:
    return sample_text_scene(rng, WORDS[int(rng.integers(len(WORDS)))])
