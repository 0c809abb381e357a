"""Which combinations and words exist, and which of them no training picture ever shows."""

from __future__ import annotations

import numpy as np

from dina.recipes.scenes.shapes import COLORS, SHAPES
from dina.recipes.scenes.world import Combo

SEED = 20260327
"""Fixes every split of this world."""

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks of GenEval."""

_WORDS = """
    CAT DOG SUN SKY SEA TEA ICE HAT CUP BED BUS CAR BOX TOY OWL MAP FOX
    STAR MOON TREE BIRD FISH SHOP CAFE OPEN EXIT LOVE HOPE BLUE ROSE GOLD JAZZ KIWI QUIZ BOOK VIEW JUMP WAVE MILK
    BREAD WATER HOUSE LIGHT MUSIC PIZZA QUICK HAPPY APPLE GREEN NIGHT DREAM RIVER
"""
WORDS = tuple(_WORDS.split())
"""Words that training pictures may show."""

NOVEL_WORDS = ("PEN", "BAR", "CAKE", "LION", "STONE", "TIGER", "SNOW", "CHAIR")
"""Words that no training picture shows; each of their letters occurs in :data:`WORDS`."""

COMBOS: tuple[Combo, ...] = tuple((shape, color) for shape in SHAPES for color in COLORS)


def _novel_combos() -> tuple[Combo, ...]:
    """One colour of each shape, all different, so that every shape and colour stays well known."""
    colors = np.random.default_rng(SEED).permutation(list(COLORS))[: len(SHAPES)]
    return tuple((shape, str(color)) for shape, color in zip(SHAPES, colors, strict=True))


NOVEL_COMBOS = _novel_combos()
"""Combinations that no picture or prompt of train, dev, test, SFT or tokenizer data ever shows or names."""

SEEN_COMBOS: tuple[Combo, ...] = tuple(c for c in COMBOS if c not in NOVEL_COMBOS)
