"""Scenes: what a picture holds and where, sampling, rendering, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dina.errors import DinaError
from dina.recipes.scenes.shapes import (
    COLORS,
    GAP,
    GROUND,
    INK,
    LATTICE,
    LETTER_HEIGHT,
    LETTER_WIDTH,
    SHAPES,
    SIZES,
    TOKEN,
    letter_mask,
    object_mask,
)

Combo = tuple[str, str]
"""(shape, color)"""

CANVASES = ((64, 64), (96, 64), (64, 96))
"""(width, height) in pixels of the pictures."""
_CANVAS_ODDS = (0.85, 0.075, 0.075)


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""The four relations, each with the one that says the same with the two objects swapped."""


class SceneError(DinaError):
    """A scene description that can't be drawn."""


@dataclass(frozen=True)
class Obj:
    """One object: words of ``SHAPES``, ``COLORS`` and ``SIZES``, and its centre in pixels."""

    shape: str
    color: str
    size: str
    cx: int
    cy: int

    @property
    def combo(self) -> Combo:
        return self.shape, self.color


@dataclass(frozen=True)
class Scene:
    """A picture's content. ``text`` is drawn with its upper left corner at ``text_at`` = (x, y) pixels."""

    objects: tuple[Obj, ...] = ()
    text: str | None = None
    width: int = 64
    height: int = 64
    text_at: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) in visual tokens."""
        return self.height // TOKEN, self.width // TOKEN


def sample_canvas(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height): mostly 64×64, 15 % wide or tall."""
    return CANVASES[int(rng.choice(len(CANVASES), p=_CANVAS_ODDS))]


@cache
def _spots(width: int, height: int, size: str) -> np.ndarray:
    """Every lattice centre where an object of this size lies inside the picture, ``[n, 2]`` int64 (x, y)."""
    first = SIZES[size] + GAP
    xs, ys = (np.arange(first, extent - first + 1, LATTICE) for extent in (width, height))
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def holds(a: tuple[int, int], relation: str, b: tuple[int, int]) -> bool:
    """Whether centre ``a`` is clearly ``left of`` / ``right of`` / ``above`` / ``below`` centre ``b``.

    Clear means at least 20 pixels along the axis and at most half of that across it.
    """
    dx, dy = b[0] - a[0], b[1] - a[1]
    along, across = {
        "left of": (dx, dy),
        "right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]
    return along >= 20 and 2 * abs(across) <= along


def place(
    rng: np.random.Generator, sizes: Sequence[str], width: int, height: int, relation: str | None = None
) -> list[tuple[int, int]]:
    """Draws lattice centres for objects of the given sizes so that none touch.

    Args:
        relation: if given, the first object is clearly so placed to the second.

    Raises:
        SceneError: the objects don't fit.
    """
    order = sorted(range(len(sizes)), key=lambda i: -SIZES[sizes[i]])
    for _ in range(200):
        centres: dict[int, tuple[int, int]] = {}
        for i in order:
            free = _spots(width, height, sizes[i])
            for j, centre in centres.items():
                need = SIZES[sizes[i]] + SIZES[sizes[j]] + GAP
                free = free[np.abs(free - centre).max(axis=1) >= need]
                if relation and {i, j} == {0, 1}:
                    word = relation if i == 0 else OPPOSITE[relation]
                    free = free[[holds((x, y), word, centre) for x, y in free.tolist()]]
            if not len(free):
                break
            x, y = free[int(rng.integers(len(free)))].tolist()
            centres[i] = (x, y)
        else:
            return [centres[i] for i in range(len(sizes))]
    raise SceneError(
        f"no room for {len(sizes)} objects in {width}×{height} pixels; use fewer or smaller ones"
    )


def sample_sizes(rng: np.random.Generator, count: int) -> list[str]:
    """A size for each object; of four objects at most two are large, so that they fit."""
    sizes = [str(s) for s in rng.choice(tuple(SIZES), size=count)]
    if count > 3 and sizes.count("large") > 2:
        sizes = [str(s) for s in rng.permutation(["large", "large", "small", "small"])]
    return sizes


def compose(
    rng: np.random.Generator,
    combos: Sequence[Combo],
    *,
    sizes: Sequence[str] | None = None,
    relation: str | None = None,
    canvas: tuple[int, int] | None = None,
) -> Scene:
    """A scene with exactly these (shape, colour) objects at random free places.

    Args:
        sizes: one per object, random if not given.
        relation: how the first object lies to the second.
        canvas: (width, height), random if not given.
    """
    width, height = canvas or sample_canvas(rng)
    sizes = sizes or sample_sizes(rng, len(combos))
    centres = place(rng, sizes, width, height, relation)
    objects = tuple(
        Obj(shape, color, size, x, y)
        for (shape, color), size, (x, y) in zip(combos, sizes, centres, strict=True)
    )
    return Scene(objects, width=width, height=height)


def sample_scene(rng: np.random.Generator, combos: Sequence[Combo], count: int | None = None) -> Scene:
    """A scene of ``count`` (1 to 4 if not given) objects, each drawn from ``combos``."""
    count = count or int(rng.integers(1, 5))
    picks = rng.integers(len(combos), size=count)
    return compose(rng, [combos[i] for i in picks])


def _near_middle(free: int, rng: np.random.Generator) -> int:
    spots = [at for at in range(0, free + 1, TOKEN) if abs(2 * at - free) <= 2 * TOKEN]
    return spots[int(rng.integers(len(spots)))]


def sample_text_scene(rng: np.random.Generator, word: str, canvas: tuple[int, int] | None = None) -> Scene:
    """A scene with one word, near the middle, on the token lattice."""
    width, height = canvas or sample_canvas(rng)
    x = _near_middle(width - len(word) * LETTER_WIDTH, rng)
    y = _near_middle(height - LETTER_HEIGHT, rng)
    return Scene((), word, width, height, (x, y))


def _blend(region: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    region += mask[..., None] * (np.asarray(color, np.float32) - region)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene, ``[height, width, 3]`` uint8 RGB."""
    canvas = np.empty((scene.height, scene.width, 3), np.float32)
    canvas[:] = GROUND
    for obj in scene.objects:
        half = SIZES[obj.size]
        region = canvas[obj.cy - half : obj.cy + half, obj.cx - half : obj.cx + half]
        _blend(region, object_mask(obj.shape, obj.size), COLORS[obj.color])
    if scene.text:
        x, y = scene.text_at or (0, 0)
        for i, letter in enumerate(scene.text):
            left = x + i * LETTER_WIDTH
            region = canvas[y : y + LETTER_HEIGHT, left : left + LETTER_WIDTH]
            _blend(region, letter_mask(letter), INK)
    return np.rint(canvas).astype(np.uint8)


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values; :func:`scene_from_json` reads it back."""
    out: dict[str, Any] = {"size": [scene.width, scene.height]}
    if scene.objects:
        out["objects"] = [
            {"shape": o.shape, "color": o.color, "size": o.size, "at": [o.cx, o.cy]} for o in scene.objects
        ]
    if scene.text:
        out["text"] = scene.text
        out["text_at"] = list(scene.text_at or (0, 0))
    return out


def _object_from_json(data: Mapping[str, Any], width: int, height: int) -> Obj:
    for key, words in (("shape", SHAPES), ("color", tuple(COLORS)), ("size", tuple(SIZES))):
        if data.get(key) not in words:
            raise SceneError(f"object {dict(data)}: {key} {data.get(key)!r} is not one of {', '.join(words)}")
    try:
        cx, cy = (int(v) for v in data["at"])
    except (KeyError, TypeError, ValueError):
        raise SceneError(f"object {dict(data)}: 'at' must be its centre [x, y] in pixels") from None
    half = SIZES[data["size"]]
    if not (half <= cx <= width - half and half <= cy <= height - half):
        raise SceneError(f"object {dict(data)}: it does not lie inside the {width}×{height} picture")
    return Obj(data["shape"], data["color"], data["size"], cx, cy)


def scene_from_json(data: Mapping[str, Any]) -> Scene:
    """Reads a scene.

    Raises:
        SceneError: a field is missing, unknown, or lies outside the picture.
    """
    try:
        width, height = (int(v) for v in data["size"])
    except (KeyError, TypeError, ValueError):
        raise SceneError("a scene needs 'size': [width, height] in pixels") from None
    if width <= 0 or height <= 0 or width % TOKEN or height % TOKEN:
        raise SceneError(f"scene size {width}×{height}: both must be positive multiples of {TOKEN} pixels")
    objects = tuple(_object_from_json(o, width, height) for o in data.get("objects") or ())
    text = data.get("text") or None
    if text is None:
        return Scene(objects, None, width, height)
    x, y = (int(v) for v in data.get("text_at") or (0, 0))
    fits = 0 <= x <= width - len(text) * LETTER_WIDTH and 0 <= y <= height - LETTER_HEIGHT
    if not (isinstance(text, str) and text.isascii() and text.isalpha() and text.isupper() and fits):
        raise SceneError(
            f"text {text!r} at {[x, y]}: must be letters A to Z that fit into {width}×{height} pixels"
        )
    return Scene(objects, text, width, height, (x, y))


def render_json(data: Mapping[str, Any]) -> np.ndarray:
    """Renders a scene's JSON form, ``[height, width, 3]`` uint8 RGB: the hook for prompt files."""
    return render(scene_from_json(data))
