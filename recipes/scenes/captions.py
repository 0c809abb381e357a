"""What a picture can be asked to show, in English: concepts, their wordings, their checks, their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from dina.recipes.scenes.concepts import SEEN_COMBOS, TAGS
from dina.recipes.scenes.shapes import PLURALS, SHAPES, SIZES
from dina.recipes.scenes.world import OPPOSITE, Combo, Scene, compose, sample_text_scene

NUMBERS = ("zero", "one", "two", "three", "four")
DRAWING_TAGS = (*TAGS, "text_rendering")

OPENINGS = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a scene with {}",
    "draw {}",
    "please draw {}",
    "show {}",
    "paint {}",
    "make a picture of {}",
)
_ENDINGS = ("", " on a light ground", " on a plain background", " and nothing else")
_WORD_FORMS = (
    'the word "{}"',
    'the text "{}"',
    'the letters "{}"',
    'a sign that says "{}"',
    'a note that reads "{}"',
    'the word "{}" in dark letters',
)
DETAILED = {"single_object": 0.3, "two_object": 0.3, "counting": 0.5, "position": 0.3}
"""How often a caption of a tag also names a colour that its task does not need ("two red stars")."""


@dataclass(frozen=True)
class Thing:
    """``count`` objects of one kind as a caption names them; ``None`` is left open."""

    shape: str
    color: str | None = None
    size: str | None = None
    count: int = 1

    @property
    def noun(self) -> str:
        shape = self.shape if self.count == 1 else PLURALS[self.shape]
        return " ".join(word for word in (self.size, self.color, shape) if word)

    @property
    def phrase(self) -> str:
        """With its article or number: ``an orange ring``, ``two stars``."""
        if self.count > 1:
            return f"{NUMBERS[self.count]} {self.noun}"
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    @property
    def clause(self) -> dict[str, Any]:
        """The ``include`` entry of GenEval's form. A size is not scored."""
        return {"class": self.shape, "count": self.count} | ({"color": self.color} if self.color else {})


@dataclass(frozen=True)
class Concept:
    """One thing to draw: objects (the first in ``relation`` to the second, if given) or a word."""

    tag: str
    things: tuple[Thing, ...] = ()
    relation: str | None = None
    word: str | None = None

    @property
    def named(self) -> tuple[Combo, ...]:
        """The (shape, colour) combinations that the caption names."""
        return tuple((t.shape, t.color) for t in self.things if t.color)

    @property
    def detailed(self) -> bool:
        """Whether it names a colour that its task does not need."""
        return self.tag in DETAILED and bool(self.named)

    @property
    def key(self) -> Any:
        """Equal for concepts that ask for the same; what the splits keep apart.

        Shape pairs for two objects and (canonical) positions, whatever colours they add; the named combinations
        for colours and attribution; number, shape and colour for counting; the word for text. ``None`` for single
        objects: too few to keep apart, there only the prompts differ.
        """
        shapes = [t.shape for t in self.things]
        match self.tag:
            case "two_object":
                return tuple(sorted(shapes))
            case "position":
                forward = self.relation in ("left of", "above")
                relation = self.relation if forward else OPPOSITE[self.relation or ""]
                return (relation, *(shapes if forward else shapes[::-1]))
            case "counting":
                return (self.things[0].count, shapes[0], self.things[0].color)
            case "colors" | "color_attr":
                return tuple(sorted(self.named))
            case "text_rendering":
                return self.word
        return None

    @property
    def checks(self) -> dict[str, Any]:
        """The scoring columns of a prompt row: ``include``, ``exclude``, ``text``."""
        if self.word:
            return {"text": [self.word]}
        clauses = [thing.clause for thing in self.things]
        if self.relation:
            clauses = [clauses[1], clauses[0] | {"position": [self.relation, 0]}]
        if self.tag == "counting":
            more = {"class": self.things[0].shape, "count": self.things[0].count + 1}
            return {"include": clauses, "exclude": [more]}
        return {"include": clauses}

    def forms(self) -> list[str]:
        """The ways to say it, without opening and ending."""
        if self.word:
            return [form.format(self.word) for form in _WORD_FORMS]
        if self.relation:
            return _position_forms(self.things[0], self.relation, self.things[1])
        if len(self.things) == 2:
            a, b = self.things
            return [
                f"{a.phrase} and {b.phrase}",
                f"one {a.noun} and one {b.noun}",
                f"both {a.phrase} and {b.phrase}",
                f"{a.phrase} together with {b.phrase}",
            ]
        (thing,) = self.things
        if thing.count > 1:
            return [thing.phrase, f"exactly {thing.phrase}", f"a group of {thing.phrase}"]
        forms = [thing.phrase, f"one {thing.noun}", f"a single {thing.noun}"]
        if self.tag == "colors":
            bare = replace(thing, color=None)
            forms += [f"{bare.phrase} that is {thing.color}", f"{bare.phrase} in {thing.color}"]
        return forms

    def wordings(self) -> Iterator[str]:
        """Every caption of the concept."""
        for form, opening, ending in product(self.forms(), OPENINGS, _ENDINGS):
            yield opening.format(form) + ending

    def wording(self, rng: np.random.Generator) -> str:
        """One caption at random."""
        form, opening, ending = (
            options[int(rng.integers(len(options)))] for options in (self.forms(), OPENINGS, _ENDINGS)
        )
        return opening.format(form) + ending

    def picture(self, rng: np.random.Generator, combos: Sequence[Combo] = SEEN_COMBOS) -> Scene:
        """A scene with exactly what the concept names; what it leaves open is drawn from ``combos``."""
        if self.word:
            return sample_text_scene(rng, self.word)
        chosen: list[Combo] = []
        sizes: list[str] = []
        for thing in self.things:
            colors = [c for s, c in combos if s == thing.shape]
            color = thing.color or colors[int(rng.integers(len(colors)))]
            chosen += [(thing.shape, color)] * thing.count
            sizes += [thing.size] * thing.count if thing.size else []
        return compose(rng, chosen, sizes=sizes or None, relation=self.relation)


def _position_forms(a: Thing, relation: str, b: Thing) -> list[str]:
    forms = [f"{a.phrase} {relation} {b.phrase}", f"{a.phrase} that is {relation} {b.phrase}"]
    if relation in ("left of", "right of"):
        return [
            *forms,
            f"{a.phrase} to the {relation} {b.phrase}",
            f"{a.phrase} on the {relation} {b.phrase}",
        ]
    return [*forms, f"{a.phrase} placed {relation} {b.phrase}", f"{a.phrase} somewhere {relation} {b.phrase}"]


def _coloured_pairs(combos: Sequence[Combo]) -> Iterator[tuple[Thing, Thing]]:
    """Two different shapes: both bare, or one of them with its colour."""
    for a, b in permutations(SHAPES, 2):
        yield Thing(a), Thing(b)
    for (shape, color), other in product(combos, SHAPES):
        if other != shape:
            yield Thing(shape, color), Thing(other)
            yield Thing(other), Thing(shape, color)


@cache
def concepts(tag: str, combos: tuple[Combo, ...] = SEEN_COMBOS) -> tuple[Concept, ...]:
    """Every concept of a GenEval tag that names no combination outside ``combos``."""
    coloured = [Thing(shape, color) for shape, color in combos]
    match tag:
        case "single_object":
            things = [Thing(shape, size=size) for shape, size in product(SHAPES, (None, *SIZES))]
            things += [replace(thing, size=size) for thing, size in product(coloured, SIZES)]
            return tuple(Concept(tag, (thing,)) for thing in things)
        case "colors":
            return tuple(Concept(tag, (thing,)) for thing in coloured)
        case "counting":
            bare = [Thing(shape) for shape in SHAPES]
            pairs = product(bare + coloured, (2, 3, 4))
            return tuple(Concept(tag, (replace(thing, count=n),)) for thing, n in pairs)
        case "two_object":
            return tuple(Concept(tag, pair) for pair in _coloured_pairs(combos))
        case "position":
            placed = product(_coloured_pairs(combos), OPPOSITE)
            return tuple(Concept(tag, pair, relation) for pair, relation in placed)
        case "color_attr":
            both = [
                pair
                for pair in combinations(coloured, 2)
                if pair[0].shape != pair[1].shape and pair[0].color != pair[1].color
            ]
            return tuple(Concept(tag, pair) for a, b in both for pair in ((a, b), (b, a)))
    raise ValueError(f"unknown tag {tag!r}; the tags are {', '.join(TAGS)}")


def text_concepts(words: Sequence[str]) -> tuple[Concept, ...]:
    """One text-rendering concept per word."""
    return tuple(Concept("text_rendering", word=word) for word in words)
