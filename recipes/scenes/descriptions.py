"""Sentences that name every object of a scene, with its colour and its place.

As captions they are for supervised training alone: short ones say little about which colour belongs to which shape, or
where things are (at most one bit each), and a small model learns to ignore it. A dense caption of four objects says
several times as much. No benchmark prompt is worded like them.

As answers they are the long task of understanding: a whole scene in reading order, with nothing left out.
"""

from __future__ import annotations

import numpy as np

from dina.recipes.scenes.captions import OPENINGS, Thing
from dina.recipes.scenes.concepts import SEEN_COMBOS
from dina.recipes.scenes.questions import Question
from dina.recipes.scenes.world import Obj, Scene, sample_scene

_COUNT_ODDS = (0.1, 0.3, 0.3, 0.3)
_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")


def sample_description(rng: np.random.Generator) -> tuple[str, Scene]:
    """A caption and the picture it describes, of one to four objects in seen combinations."""
    scene = sample_scene(rng, SEEN_COMBOS, count=1 + int(rng.choice(4, p=_COUNT_ODDS)))
    return describe(scene, rng), scene


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Names all objects in random order; colours and places are now and then left out, sizes mostly."""
    placed = rng.random() < 0.7
    phrases = [_phrase(scene.objects[i], scene, placed, rng) for i in rng.permutation(len(scene.objects))]
    opening = OPENINGS[int(rng.integers(len(OPENINGS)))] if rng.random() < 0.5 else "{}"
    return opening.format(_listed(phrases))


REQUESTS = (
    "describe every object with its color and place.",
    "list all shapes with their colors and places.",
    "which shapes are there, and where is each of them?",
)
"""The ways to ask for a whole description."""
_REQUEST_ODDS = (0.3, 0.3, 0.4)


def sample_request(rng: np.random.Generator) -> Question:
    """A request to describe a scene of two to four objects in seen combinations."""
    scene = sample_scene(rng, SEEN_COMBOS, count=2 + int(rng.choice(3, p=_REQUEST_ODDS)))
    return Question(
        "description", REQUESTS[int(rng.integers(len(REQUESTS)))], whole_description(scene), scene
    )


def whole_description(scene: Scene) -> str:
    """All objects with colours and places, from the top left to the bottom right."""
    phrases = [f"{Thing(o.shape, o.color).phrase} {place_of(o, scene)}" for o in _reading_order(scene)]
    return _listed(phrases)


def _reading_order(scene: Scene) -> list[Obj]:
    return sorted(scene.objects, key=lambda o: (_third(o.cy, scene.height), o.cx, o.cy))


def partial_description(scene: Scene, rng: np.random.Generator) -> str:
    """The same objects in the same order, but half of the colours and more of the places left out, as people do."""
    phrases = []
    for obj in _reading_order(scene):
        thing = Thing(obj.shape, obj.color if rng.random() < 0.5 else None).phrase
        phrases.append(f"{thing} {place_of(obj, scene)}" if rng.random() < 0.4 else thing)
    return _listed(phrases)


def reasoned(question: Question) -> str:
    """The answer after a description of the picture that it follows from; a word alone needs no description."""
    if not question.scene.objects:
        return question.answer
    return f"{whole_description(question.scene)}. answer: {question.answer}"


def place_of(obj: Obj, scene: Scene) -> str:
    """Where an object lies by thirds of the picture: ``at the top left``, ``in the middle``, …"""
    row, column = _ROWS[_third(obj.cy, scene.height)], _COLUMNS[_third(obj.cx, scene.width)]
    words = " ".join(word for word in (row, column) if word)
    return f"at the {words}" if words else "in the middle"


def _third(at: int, extent: int) -> int:
    return min(2, 3 * at // extent)


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _phrase(obj: Obj, scene: Scene, placed: bool, rng: np.random.Generator) -> str:
    color = obj.color if rng.random() < 0.85 else None
    size = obj.size if rng.random() < 0.25 else None
    phrase = Thing(obj.shape, color, size).phrase
    return f"{phrase} {place_of(obj, scene)}" if placed and rng.random() < 0.85 else phrase
