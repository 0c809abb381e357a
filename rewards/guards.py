"""Statistics that move when a policy games its rewards: logged beside them, never trained on.

A text reward can be raised by blanking the ground (dark share up, edges and colour entropy down), presence rewards
by flooding the picture (excess objects and text up), any reward by drawing one good picture for ever (unique ratio
and diversity down). Pictures are ``[H, W, 3]`` uint8 RGB of any size.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dina.rewards.protocol import SuiteResult
from dina.rollout.protocol import Sample

Picture = NDArray[np.uint8]

DARK_LUMA = 64
EDGE_STEP = 24
_BINS = 8
_THUMBNAIL = (16, 16)
_EXCESS_PARTS = ("excess_objects", "excess_text")


def batch_guards(samples: Sequence[Sample], scored: SuiteResult | None = None) -> dict[str, float]:
    """``guards/*`` of a batch; empty without pictures.

    Means over the pictures of :func:`picture_guards`; ``unique_ratio`` over all pictures; ``diversity``, averaged
    over the prompts with several pictures; and from ``scored`` the mean ``excess_objects`` (surplus objects per
    picture) and ``excess_text`` (share of surplus characters), whichever rewards measured them.
    """
    by_prompt: dict[str, list[Picture]] = defaultdict(list)
    for sample in samples:
        if sample.image is not None:
            by_prompt[sample.prompt.id].append(sample.image)
    pictures = [picture for group in by_prompt.values() for picture in group]
    if not pictures:
        return {}
    out = _means([picture_guards(picture) for picture in pictures])
    out["unique_ratio"] = unique_ratio(pictures)
    spreads = [diversity(group) for group in by_prompt.values() if len(group) > 1]
    if spreads:
        out["diversity"] = float(np.mean(spreads))
    if scored:
        parts = [scored.part_means(name) for name in scored.parts]
        out |= {key: means[key] for means in parts for key in _EXCESS_PARTS if key in means}
    return {f"guards/{name}": value for name, value in out.items()}


def picture_guards(picture: Picture) -> dict[str, float]:
    """``dark_share``, ``edge_density``, ``color_entropy`` and ``jpeg_size`` of one picture."""
    return {
        "dark_share": dark_share(picture),
        "edge_density": edge_density(picture),
        "color_entropy": color_entropy(picture),
        "jpeg_size": jpeg_size(picture),
    }


def dark_share(picture: Picture) -> float:
    """Share of the pixels with a luma below 64 of 255."""
    return float((_luma(picture) < DARK_LUMA).mean())


def edge_density(picture: Picture) -> float:
    """Share of the pixels whose luma differs by more than 24 of 255 from the right or the lower neighbour."""
    luma = _luma(picture)
    edges = np.zeros(luma.shape, dtype=bool)
    edges[:, :-1] |= np.abs(np.diff(luma, axis=1)) > EDGE_STEP
    edges[:-1] |= np.abs(np.diff(luma, axis=0)) > EDGE_STEP
    return float(edges.mean())


def color_entropy(picture: Picture) -> float:
    """Entropy in bits of the colours, 8 steps per channel: 0 for one colour, at most 9."""
    shares = color_histogram([picture])
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() + 0.0)


def jpeg_size(picture: Picture) -> float:
    """Bytes per pixel of the picture as a JPEG of quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=90)
    return buffer.tell() / (picture.shape[0] * picture.shape[1])


def unique_ratio(pictures: Sequence[Picture], tolerance: float = 0.01) -> float:
    """Distinct pictures / pictures.

    Two pictures are the same if their 16x16 thumbnails differ by at most ``tolerance`` of the value range on
    average, so noise in the ground does not hide that a policy draws one picture again and again.
    """
    distinct: list[NDArray[np.float64]] = []
    for thumbnail in _thumbnails(pictures):
        if not distinct or np.abs(np.stack(distinct) - thumbnail).mean(axis=1).min() > tolerance:
            distinct.append(thumbnail)
    return len(distinct) / len(pictures)


def diversity(pictures: Sequence[Picture]) -> float:
    """Mean absolute difference (0..1) of the 16x16 thumbnails over all pairs; 0.0 for a single picture."""
    thumbnails = np.stack(_thumbnails(pictures))
    if len(thumbnails) < 2:
        return 0.0
    pairs = [
        np.abs(thumbnails[i + 1 :] - thumbnail).mean(axis=1) for i, thumbnail in enumerate(thumbnails[:-1])
    ]
    return float(np.concatenate(pairs).mean())


def color_histogram(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """``[512]`` shares of the colours, 8 steps per channel; every picture weighs the same."""
    total = np.zeros(_BINS**3)
    for picture in pictures:
        steps = picture.reshape(-1, 3).astype(np.int64) // (256 // _BINS)
        counts = np.bincount(steps @ np.array([_BINS**2, _BINS, 1]), minlength=_BINS**3)
        total += counts / counts.sum()
    return total / max(len(pictures), 1)


def _luma(picture: Picture) -> NDArray[np.float64]:
    return picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _thumbnails(pictures: Sequence[Picture]) -> list[NDArray[np.float64]]:
    small = [Image.fromarray(picture).resize(_THUMBNAIL, Image.Resampling.BOX) for picture in pictures]
    return [np.asarray(image, dtype=np.float64).ravel() / 255 for image in small]


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
