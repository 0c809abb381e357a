"""Questions about pictures, with short answers: count, colour, shape, presence, position, text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dina.recipes.scenes.captions import NUMBERS, Thing
from dina.recipes.scenes.concepts import SEEN_COMBOS, WORDS
from dina.recipes.scenes.shapes import COLORS, PLURALS, SHAPES
from dina.recipes.scenes.world import OPPOSITE, Combo, Scene, compose, sample_text_scene

T = TypeVar("T")
_SIDES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question about ``scene``; the answer is one lower-case word, or the letters of a word as drawn."""

    kind: str
    prompt: str
    answer: str
    scene: Scene


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _others(rng: np.random.Generator, count: int, banned: Callable[[Combo], bool]) -> list[Combo]:
    """Random combinations that the question must not be about."""
    allowed = [combo for combo in SEEN_COMBOS if not banned(combo)]
    return [_pick(rng, allowed) for _ in range(count)]


def _shuffled_scene(rng: np.random.Generator, combos: list[Combo]) -> Scene:
    return compose(rng, [combos[i] for i in rng.permutation(len(combos))])


def ask_count(rng: np.random.Generator) -> Question:
    """How many of a shape, or of a colour: one to four, equally often."""
    n = int(rng.integers(1, 5))
    rest = int(rng.integers(0, 5 - n))
    if rng.random() < 0.7:
        shape = _pick(rng, SHAPES)
        mine = [c for c in SEEN_COMBOS if c[0] == shape]
        same = _pick(rng, mine)
        wanted = [same if rng.random() < 0.5 else _pick(rng, mine) for _ in range(n)]
        combos = wanted + _others(rng, rest, lambda c: c[0] == shape)
        forms = (f"how many {PLURALS[shape]} are there?", f"how many {PLURALS[shape]} do you see?")
    else:
        color = _pick(rng, tuple(COLORS))
        mine = [c for c in SEEN_COMBOS if c[1] == color]
        combos = [_pick(rng, mine) for _ in range(n)] + _others(rng, rest, lambda c: c[1] == color)
        forms = (f"how many {color} shapes are there?", f"how many shapes are {color}?")
    return Question("count", _pick(rng, forms), NUMBERS[n], _shuffled_scene(rng, combos))


def ask_color(rng: np.random.Generator) -> Question:
    """The colour of the only object of a shape."""
    color = _pick(rng, tuple(COLORS))
    shape = _pick(rng, [s for s, c in SEEN_COMBOS if c == color])
    combos = [(shape, color), *_others(rng, int(rng.integers(0, 3)), lambda c: c[0] == shape)]
    forms = (f"what color is the {shape}?", f"which color does the {shape} have?")
    return Question("color", _pick(rng, forms), color, _shuffled_scene(rng, combos))


def ask_shape(rng: np.random.Generator) -> Question:
    """The shape of the only object of a colour."""
    shape = _pick(rng, SHAPES)
    color = _pick(rng, [c for s, c in SEEN_COMBOS if s == shape])
    combos = [(shape, color), *_others(rng, int(rng.integers(0, 3)), lambda c: c[1] == color)]
    forms = (f"which shape is {color}?", f"what is the {color} shape?")
    return Question("shape", _pick(rng, forms), shape, _shuffled_scene(rng, combos))


def ask_exists(rng: np.random.Generator) -> Question:
    """Whether a shape, or a shape of a colour, is there: yes and no equally often.

    Half of the negative questions about a combination show its shape and its colour on other objects.
    """
    yes = bool(rng.random() < 0.5)
    rest = int(rng.integers(1, 4))
    shape, color = _pick(rng, SEEN_COMBOS)
    if rng.random() < 0.5:
        thing = Thing(shape)
        combos = _others(rng, rest, lambda c: c[0] == shape)
        combos += [(shape, color)] if yes else []
    else:
        thing = Thing(shape, color)
        combos = _others(rng, rest, lambda c: c == (shape, color))
        if yes:
            combos[0] = (shape, color)
        elif rng.random() < 0.5:
            combos = combos[:2]
            combos += _others(rng, 1, lambda c: c[0] != shape or c[1] == color)
            combos += _others(rng, 1, lambda c: c[1] != color or c[0] == shape)
    forms = (f"is there {thing.phrase}?", f"do you see {thing.phrase}?")
    return Question("exists", _pick(rng, forms), "yes" if yes else "no", _shuffled_scene(rng, combos))


def ask_position(rng: np.random.Generator) -> Question:
    """Whether one object is left of, right of, above or below another (yes or no), or which of these it is."""
    a, b = (str(s) for s in rng.choice(SHAPES, size=2, replace=False))
    combos = [_pick(rng, [c for c in SEEN_COMBOS if c[0] == shape]) for shape in (a, b)]
    relation = _pick(rng, tuple(OPPOSITE))
    scene = compose(rng, combos, relation=relation)
    if rng.random() < 0.5:
        prompt = f"where is the {a}, seen from the {b}: left, right, above or below?"
        return Question("position", prompt, _SIDES[relation], scene)
    yes = bool(rng.random() < 0.5)
    asked = relation if yes else _pick(rng, [r for r in OPPOSITE if r != relation])
    return Question("position", f"is the {a} {asked} the {b}?", "yes" if yes else "no", scene)


def ask_text(rng: np.random.Generator) -> Question:
    """What is written."""
    word = _pick(rng, WORDS)
    forms = ("what does the text say?", "which word is written here?", "read the word.")
    return Question("text", _pick(rng, forms), word, sample_text_scene(rng, word))


KINDS: dict[str, Callable[[np.random.Generator], Question]] = {
    "count": ask_count,
    "color": ask_color,
    "shape": ask_shape,
    "exists": ask_exists,
    "position": ask_position,
    "text": ask_text,
}
"""The kinds of questions; each makes one from a random generator."""


def about(prompt: str, columns: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Questions of these kinds, with the answers that a picture of a prompt row has; for the reward ``self_judge``.

    Args:
        columns: the row's ``include`` and ``text``, as in the prompt files.
    """
    return [(question, answer) for _, question, answer in _about(columns)]


def about_colors_and_words(prompt: str, columns: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same, of the kinds that the shipped checkpoint answers better than by chance."""
    return [
        (question, answer) for kind, question, answer in _about(columns) if kind in ("color", "shape", "text")
    ]


def _about(columns: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(kind, question, answer)."""
    clauses = columns.get("include") or []
    found = [("text", "what does the text say?", word) for word in columns.get("text") or []]
    for clause in clauses:
        shape, color, count = clause["class"], clause.get("color"), clause.get("count", 1)
        if count > 1:
            found.append(("count", f"how many {PLURALS[shape]} are there?", NUMBERS[count]))
        elif color:
            found.append(("color", f"what color is the {shape}?", color))
            found.append(("shape", f"which shape is {color}?", shape))
        else:
            found.append(("exists", f"is there {Thing(shape).phrase}?", "yes"))
        if position := clause.get("position"):
            other = clauses[position[1]]["class"]
            found.append(("position", f"is the {shape} {position[0]} the {other}?", "yes"))
    return found


def _evenly(answers: Sequence[str], total: float = 1.0) -> dict[str, float]:
    return dict.fromkeys(answers, total / len(answers))


ANSWERS: dict[str, dict[str, float]] = {
    "count": _evenly(NUMBERS[1:]),
    "color": _evenly(tuple(COLORS)),
    "shape": _evenly(SHAPES),
    "exists": _evenly(("yes", "no")),
    "position": _evenly(("yes", "no"), 0.5) | _evenly(tuple(_SIDES.values()), 0.5),
    "text": _evenly(WORDS),
}
"""The possible answers of each kind, with their shares."""
