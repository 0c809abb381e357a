"""Pictures on disk and inside a page, and how varied a set of them is."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dina.rewards.guards import diversity, unique_ratio

Picture = NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 40),
    "green": (50, 160, 70),
    "cyan": (60, 200, 210),
    "blue": (45, 90, 215),
    "purple": (135, 60, 180),
    "pink": (245, 140, 185),
    "brown": (125, 80, 45),
    "black": (20, 20, 20),
    "grey": (135, 135, 135),
    "white": (250, 250, 250),
}
_GROUND_DISTANCE = 15.0  # CIE76 units; well above decoder noise, well below the distance of any two names


@dataclass(frozen=True)
class PictureStats:
    """How varied a set of drawn pictures is; what mode collapse would lower.

    Attributes:
        pictures: number of pictures.
        unique_ratio: distinct pictures / pictures (``rewards.guards.unique_ratio``); NaN without pictures.
        unique_per_prompt: the same inside each prompt's samples, averaged; NaN with one sample per prompt.
        diversity: mean difference (0..1) of two samples of one prompt (``rewards.guards``); NaN likewise.
        colours: colour name -> share of the non-ground pixels, averaged over pictures.
    """

    pictures: int
    unique_ratio: float
    unique_per_prompt: float
    diversity: float
    colours: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PictureStats:
        known: dict[str, Any] = {k: float("nan") if v is None else v for k, v in data.items()}
        return cls(**known)


def picture_stats(groups: Iterable[Sequence[Picture]]) -> PictureStats:
    """Statistics of pictures that are grouped by prompt."""
    sets = [list(group) for group in groups if len(group)]
    repeated = [group for group in sets if len(group) > 1]
    pictures = [picture for group in sets for picture in group]
    return PictureStats(
        pictures=len(pictures),
        unique_ratio=unique_ratio(pictures) if pictures else float("nan"),
        unique_per_prompt=_mean([unique_ratio(group) for group in repeated]),
        diversity=_mean([diversity(group) for group in repeated]),
        colours=colour_shares(pictures),
    )


def colour_shares(pictures: Iterable[Picture]) -> dict[str, float]:
    """Share of each basic colour among the pixels that are not ground, averaged over pictures.

    The ground of a picture is its most frequent colour and what looks like it; with it inside, a few coloured
    shapes on a light ground would make any two sets of pictures look alike.
    """
    anchors = _lab(np.array(list(COLOURS.values()), dtype=np.uint8)[None])[0]
    shares = [share for picture in pictures if (share := _shares(picture, anchors)) is not None]
    mean = np.mean(shares, axis=0) if shares else np.zeros(len(COLOURS))
    return dict(zip(COLOURS, mean.tolist(), strict=True))


def histogram_similarity(first: dict[str, float], second: dict[str, float]) -> float:
    """Histogram intersection: 1 for equal colour shares, 0 for disjoint ones; NaN where one is empty."""
    if not sum(first.values()) or not sum(second.values()):
        return float("nan")
    return sum(min(first.get(name, 0.0), second.get(name, 0.0)) for name in first)


def png_bytes(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(picture: Picture, max_side: int = 256) -> str:
    """The picture as a ``data:`` address, made smaller where a side exceeds ``max_side`` pixels."""
    if max(picture.shape[:2]) > max_side:
        small = Image.fromarray(picture)
        small.thumbnail((max_side, max_side))
        picture = np.asarray(small)
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def read_picture(path: Path) -> Picture | None:
    """``[H, W, 3]`` uint8, or None where the file is missing or no picture."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError):
        return None


def _shares(picture: Picture, anchors: NDArray[np.float64]) -> NDArray[np.float64] | None:
    step = max(1, max(picture.shape[:2]) // 128)
    picture = picture[::step, ::step]
    lab = _lab(picture).reshape(-1, 3)
    coarse = (picture.reshape(-1, 3) >> 4).astype(np.int64) @ np.array([256, 16, 1])
    ground = lab[coarse == np.bincount(coarse).argmax()].mean(0)
    shapes = lab[np.linalg.norm(lab - ground, axis=1) > _GROUND_DISTANCE]
    if not len(shapes):
        return None
    nearest = np.linalg.norm(shapes[:, None] - anchors[None], axis=2).argmin(1)
    return np.bincount(nearest, minlength=len(anchors)) / len(nearest)


def _lab(picture: Picture) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of sRGB ``[H, W, 3]`` uint8."""
    rgb = picture.astype(np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def _mean(values: Sequence[float]) -> float:
    real = [value for value in values if not np.isnan(value)]
    return float(np.mean(real)) if real else float("nan")
