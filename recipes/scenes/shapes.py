"""What a scene can hold: shapes, colours, sizes, letters, and their antialiased masks."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GROUND = (244, 242, 236)
INK = (26, 26, 30)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "orange": (248, 138, 16),
    "yellow": (238, 214, 30),
    "green": (36, 158, 66),
    "blue": (24, 104, 214),
    "purple": (140, 36, 160),
    "pink": (240, 92, 168),
    "black": INK,
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLURALS = {shape: ("crosses" if shape == "cross" else shape + "s") for shape in SHAPES}

TOKEN = 8
"""Pixels per visual token; letters and words sit on this lattice."""
LATTICE = 8
"""Pixels between two possible object centres."""
SIZES = {"small": 8, "large": 12}
"""Half of the square, in pixels, that an object reserves; the shape itself is half a pixel smaller."""
GAP = 4
"""Least distance in pixels between the squares of two objects, and to the picture's edge."""

LETTER_WIDTH, LETTER_HEIGHT = TOKEN, 2 * TOKEN
"""One letter fills one token column and two token rows, so a word is a row of independent letters."""

_SUPERSAMPLE = 8
_FONT_SIZE = 16
_LETTER_STROKE = 2


def _star_polygon() -> np.ndarray:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.05, 0.42)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.09], axis=1)


_TRIANGLE = np.array([(0.0, -0.96), (1.0, 0.86), (-1.0, 0.86)])
_STAR = _star_polygon()


def _in_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Even-odd rule for points ``x, y`` of any one shape against a closed polygon ``[n, 2]``."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def contains(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in ``shape``, in units of its half extent with the centre at (0, 0), y downwards.

    Raises:
        ValueError: ``shape`` is not one of :data:`SHAPES`.
    """
    radius = np.hypot(x, y)
    match shape:
        case "circle":
            return radius <= 1.0
        case "square":
            return np.maximum(abs(x), abs(y)) <= 0.9
        case "triangle":
            return _in_polygon(x, y, _TRIANGLE)
        case "star":
            return _in_polygon(x, y, _STAR)
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= 0.33) & (np.maximum(abs(x), abs(y)) <= 1.0)
        case "ring":
            return (radius <= 1.0) & (radius >= 0.52)
    raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")


def shape_mask(shape: str, half_extent: float, box: int, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
    """Coverage of a shape, ``[box, box]`` float32 in 0..1.

    Args:
        half_extent: half of the shape's width in pixels.
        box: side of the mask in pixels; the shape's centre is the mask's centre plus (dx, dy) pixels.
    """
    step = 1.0 / _SUPERSAMPLE
    at = (np.arange(box * _SUPERSAMPLE) + 0.5) * step - box / 2
    x, y = np.meshgrid((at - dx) / half_extent, (at - dy) / half_extent)
    fine = contains(shape, x, y).reshape(box, _SUPERSAMPLE, box, _SUPERSAMPLE)
    return fine.mean(axis=(1, 3)).astype(np.float32)


@cache
def object_mask(shape: str, size: str) -> np.ndarray:
    """Coverage of an object in the square that it reserves, ``[2 * SIZES[size]] * 2`` float32 in 0..1."""
    return shape_mask(shape, SIZES[size] - 0.5, 2 * SIZES[size])


@cache
def letter_mask(letter: str) -> np.ndarray:
    """Coverage of an upper-case letter in its cell, ``[LETTER_HEIGHT, LETTER_WIDTH]`` float32 in 0..1.

    Drawn with the font inside Pillow; letters wider than the cell are made narrower.
    """
    scale = _SUPERSAMPLE
    width, height = LETTER_WIDTH * scale, LETTER_HEIGHT * scale
    canvas = Image.new("L", (4 * width, height), 0)
    font = ImageFont.load_default(size=_FONT_SIZE * scale)
    ImageDraw.Draw(canvas).text(
        (2 * width, height / 2), letter, font=font, fill=255, anchor="mm", stroke_width=_LETTER_STROKE
    )
    left, _, right, _ = canvas.getbbox() or (0, 0, width, height)
    glyph = canvas.crop((left, 0, right, height))
    room = width - scale
    if glyph.width > room:
        glyph = glyph.resize((room, height), Image.Resampling.BOX)
    cell = Image.new("L", (width, height), 0)
    cell.paste(glyph, ((width - glyph.width) // 2, 0))
    fine = np.asarray(cell, dtype=np.float32).reshape(LETTER_HEIGHT, scale, LETTER_WIDTH, scale)
    return fine.mean(axis=(1, 3)) / 255.0
