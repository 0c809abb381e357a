"""Reads the objects of a scene from its pixels alone, sharp or as a learned decoder draws them.

A component of pixels unlike the ground gets the palette colour nearest to its core, and the shape whose template
covers it best (soft intersection over union at several sizes, half-pixel shifts and two blurs). What matches no
template is ``text`` if it is made of thin dark strokes, else ``unknown``. Both are detections, so both cost where
nobody asked for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from dina.recipes.scenes.shapes import COLORS, GROUND, LETTER_HEIGHT, SHAPES, contains
from dina.rewards.detection import Detection

_BOX = 34
"""Side of the templates in pixels."""
_HALVES = (6.0, 6.6, 7.2, 7.8, 8.5, 9.3, 10.2, 11.1, 11.9, 12.8)
_BLURS = (0.3, 0.9)
_PHASES = np.arange(-1, 4) * 0.5
"""Shifts of a template's centre of mass from the box's middle, in pixels."""
_FINE = 8
_ROOM = 12
_MATCH_LONGEST = 26
"""Components longer than this many pixels are made smaller before they are matched."""


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """``[..., 3]`` in 0..255 to CIE Lab float32."""
    flat = np.ascontiguousarray(rgb.reshape(1, -1, 3), np.float32) / 255.0
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape)


@dataclass(frozen=True)
class _Templates:
    """masks ``[shape, half, blur, phase y, phase x, box * box]``; areas ``[shape, half]`` in pixels."""

    masks: np.ndarray
    sums: np.ndarray
    areas: np.ndarray


def _fine_mask(shape: str, half: float) -> tuple[np.ndarray, float, float]:
    """A supersampled mask with room for shifts, and its centre of mass in fine pixels."""
    side = (_BOX + _ROOM) * _FINE
    at = ((np.arange(side) + 0.5) / _FINE - (_BOX + _ROOM) / 2) / half
    fine = contains(shape, *np.meshgrid(at, at)).astype(np.float32)
    ys, xs = np.nonzero(fine)
    return fine, float(ys.mean() + 0.5), float(xs.mean() + 0.5)


@cache
def _templates() -> _Templates:
    n = len(_PHASES)
    masks = np.zeros((len(SHAPES), len(_HALVES), len(_BLURS), n, n, _BOX * _BOX), np.float32)
    for s, shape in enumerate(SHAPES):
        for h, half in enumerate(_HALVES):
            fine, cy, cx = _fine_mask(shape, half)
            for i, dy in enumerate(_PHASES):
                for j, dx in enumerate(_PHASES):
                    top = round(cy - (_BOX / 2 + dy) * _FINE)
                    left = round(cx - (_BOX / 2 + dx) * _FINE)
                    view = fine[top : top + _BOX * _FINE, left : left + _BOX * _FINE]
                    mask = view.reshape(_BOX, _FINE, _BOX, _FINE).mean(axis=(1, 3))
                    for b, sigma in enumerate(_BLURS):
                        masks[s, h, b, i, j] = cv2.GaussianBlur(mask, (0, 0), sigma).ravel()
    sums = masks.sum(axis=-1)
    return _Templates(masks, sums, sums.mean(axis=(2, 3, 4)))


@dataclass
class _Blob:
    """A component: where it lies, its colour, and how much of each pixel around it covers (``alpha``)."""

    x: int
    y: int
    alpha: np.ndarray
    solid: np.ndarray
    color: str

    @property
    def box(self) -> tuple[float, float, float, float]:
        ys, xs = np.nonzero(self.alpha > 0.5)
        if len(xs) == 0:
            ys, xs = np.nonzero(self.solid)
        return (
            float(self.x + xs.min()),
            float(self.y + ys.min()),
            float(self.x + xs.max() + 1),
            float(self.y + ys.max() + 1),
        )


class ShapeDetector:
    """Detector of the scenes world, see the module's docstring.

    Args:
        min_match: least soft intersection over union with a template to be called a shape.
        min_area: components of fewer pixels are specks and are ignored.
        min_contrast: least distance in Lab from the ground to belong to an object.
        max_stroke: thin strokes are at most this many pixels from their middle to their rim.
    """

    def __init__(
        self,
        min_match: float = 0.78,
        min_area: int = 12,
        min_contrast: float = 22.0,
        max_stroke: float = 3.3,
    ) -> None:
        self.min_match = min_match
        self.min_area = min_area
        self.min_contrast = min_contrast
        self.max_stroke = max_stroke
        self._names = tuple(COLORS)
        self._palette = _to_lab(np.array(list(COLORS.values()), np.float32))
        self._ground = np.array(GROUND, np.float32)

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Objects of a picture ``[H, W, 3]`` uint8 RGB, left to right.

        Labels are the shapes, ``unknown`` (matches none) and ``text`` (one per line of letters); colours are the
        palette's; scores are the match, in 0..1.
        """
        rgb = image.astype(np.float32)
        found: list[Detection] = []
        letters: list[_Blob] = []
        for blob in self._blobs(rgb):
            label, score = self._match(blob.alpha)
            if score >= self.min_match:
                found.append(Detection(label, blob.color, blob.box, score))
            elif self._is_stroke(blob):
                letters.append(blob)
            else:
                found.append(Detection("unknown", blob.color, blob.box, 1.0 - score))
        return sorted(found + _lines(letters), key=lambda d: d.box)

    def _ground_of(self, rgb: np.ndarray) -> np.ndarray:
        """The ground's RGB: the rim's median where that is near the nominal one."""
        rim = np.concatenate([rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3), rgb[:, :2].reshape(-1, 3)])
        seen = np.median(rim, axis=0)
        near = np.linalg.norm(_to_lab(seen) - _to_lab(self._ground)) < self.min_contrast
        return seen if near else self._ground

    def _blobs(self, rgb: np.ndarray) -> Iterator[_Blob]:
        ground = self._ground_of(rgb)
        lab = _to_lab(rgb)
        contrast = np.linalg.norm(lab - _to_lab(ground), axis=-1)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (contrast > self.min_contrast).astype(np.uint8), connectivity=4
        )
        padded = 3
        for i in range(1, count):
            x, y, w, h, area = stats[i].tolist()
            if area < self.min_area:
                continue
            x0, y0 = max(x - padded, 0), max(y - padded, 0)
            window = np.s_[y0 : y + h + padded, x0 : x + w + padded]
            for solid in self._one_coloured(lab[window], contrast[window], labels[window] == i):
                yield self._blob(x0, y0, rgb[window], contrast[window], solid, ground)

    def _core(self, contrast: np.ndarray, solid: np.ndarray) -> np.ndarray:
        """Pixels of a component that show its colour unmixed with the ground's."""
        return solid & (contrast >= 0.8 * np.percentile(contrast[solid], 90))

    def _nearest(self, lab: np.ndarray) -> np.ndarray:
        return np.linalg.norm(lab[..., None, :] - self._palette, axis=-1).argmin(axis=-1)

    def _one_coloured(self, lab: np.ndarray, contrast: np.ndarray, solid: np.ndarray) -> Iterator[np.ndarray]:
        """The component itself, or its parts where it is made of large areas of several colours."""
        core = self._core(contrast, solid)
        nearest = self._nearest(lab)
        votes = np.bincount(nearest[core], minlength=len(self._names))
        if votes.max() >= 0.88 * votes.sum():
            yield solid
            return
        for color in np.flatnonzero(votes):
            part = cv2.morphologyEx(
                (solid & (nearest == color)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)
            )
            count, labels, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=4)
            for i in range(1, count):
                if stats[i, cv2.CC_STAT_AREA] >= self.min_area:
                    yield labels == i

    def _blob(
        self, x: int, y: int, rgb: np.ndarray, contrast: np.ndarray, solid: np.ndarray, ground: np.ndarray
    ) -> _Blob:
        ink = np.median(rgb[self._core(contrast, solid)], axis=0)
        name = self._names[int(self._nearest(_to_lab(ink)))]
        toward = ink - ground
        cover = ((rgb - ground) @ toward) / float(toward @ toward)
        reach = cv2.dilate(solid.astype(np.uint8), np.ones((5, 5), np.uint8))
        return _Blob(x, y, np.clip(cover, 0, 1) * reach, solid, name)

    def _match(self, alpha: np.ndarray) -> tuple[str, float]:
        """The best shape for a coverage map ``[h, w]`` and its soft intersection over union."""
        longest = max(alpha.shape)
        extent = longest - 6
        if extent > _MATCH_LONGEST:
            scale = _MATCH_LONGEST / extent
            if min(alpha.shape) * scale < 1:  # a line across a large picture: no shape is that thin
                return SHAPES[0], 0.0
            alpha = cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        total = float(alpha.sum())
        if total < self.min_area / 2:
            return SHAPES[0], 0.0
        ys, xs = np.nonzero(alpha > 0.02)
        weight = alpha[ys, xs]
        cy, cx = float((weight * (ys + 0.5)).sum() / total), float((weight * (xs + 0.5)).sum() / total)
        top, left = int(np.floor(cy)) - _BOX // 2, int(np.floor(cx)) - _BOX // 2
        inside = (ys >= top) & (ys < top + _BOX) & (xs >= left) & (xs < left + _BOX)
        canvas = np.zeros((_BOX, _BOX), np.float32)
        canvas[ys[inside] - top, xs[inside] - left] = weight[inside]
        return self._best(canvas.ravel(), total, cy - np.floor(cy), cx - np.floor(cx))

    def _best(self, canvas: np.ndarray, total: float, dy: float, dx: float) -> tuple[str, float]:
        templates = _templates()
        shape, half = np.nonzero(np.abs(np.log(templates.areas / total)) < 0.3)
        if len(shape) == 0:
            return SHAPES[0], 0.0
        i, j = (int(np.abs(_PHASES - d).argmin()) for d in (dy, dx))
        near = np.s_[i - 1 : i + 2, j - 1 : j + 2]
        masks = templates.masks[shape, half][:, :, *near]
        sums = templates.sums[shape, half][:, :, *near]
        common = np.minimum(masks, canvas).sum(axis=-1)
        match = (common / (sums + total - common)).reshape(len(shape), -1).max(axis=1)
        best = int(match.argmax())
        return SHAPES[shape[best]], float(match[best])

    def _is_stroke(self, blob: _Blob) -> bool:
        """Thin, dark, and no taller than a letter: see ``max_stroke``."""
        if blob.color != "black":
            return False
        ink = np.pad(blob.alpha > 0.65, 1)
        ys = np.flatnonzero(ink.any(axis=1))
        depth = cv2.distanceTransform(ink.astype(np.uint8), cv2.DIST_L2, 3)
        return bool(len(ys) and np.ptp(ys) < LETTER_HEIGHT + 2 and depth.max() <= self.max_stroke)


def _lines(letters: list[_Blob]) -> list[Detection]:
    """One ``text`` detection per row of letters: boxes at about the same height with small gaps are joined."""
    lines: list[list[float]] = []
    for x0, y0, x1, y1 in sorted(blob.box for blob in letters):
        for line in lines:
            overlap = min(y1, line[3]) - max(y0, line[1])
            if overlap > 0.3 * min(y1 - y0, line[3] - line[1]) and x0 - line[2] <= LETTER_HEIGHT / 2:
                line[:] = [line[0], min(y0, line[1]), max(x1, line[2]), max(y1, line[3])]
                break
        else:
            lines.append([x0, y0, x1, y1])
    return [Detection("text", "black", (x0, y0, x1, y1), 1.0) for x0, y0, x1, y1 in lines]
