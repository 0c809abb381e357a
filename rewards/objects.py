"""Objects, colours and positions in a picture, scored by GenEval's rules whatever detector reads the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from dina.rewards.detection import BatchDetector, ColorReader, Detection, Detector
from dina.rewards.detectors import DETECTORS
from dina.rewards.geneval import SceneScore, score_scene
from dina.rewards.geneval_benchmark import benchmark_correct
from dina.rewards.protocol import LogExtra, log_parts
from dina.rewards.registry import build_part

Clauses = Sequence[Mapping[str, Any]]


class ObjectsReward:
    """Reward: does the picture hold what the row's ``include`` asks for, and nothing else?

    Args:
        detector: a :class:`Detector` or :class:`BatchDetector`, its class, where to import one from
            (``package.module:attr``), or ``mask2former``, ``rt_detr``, ``d_fine``, ``owlv2`` or ``mm_grounding_dino``.
        mode: ``graded`` (partial credit, default for training), ``strict`` (1 or 0, exact counts and nothing else in
            the picture) or ``benchmark`` (1 or 0, GenEval's published rule).
        detector_kwargs: passed to the detector if it is a class.
        colors: hub name or folder of a CLIP model that names the colours that a prompt asks for, or a
            :class:`ColorReader`; by default the detector's own colours. The pretrained detectors read none.

    Columns: ``include``, ``exclude``, ``tag``. ``None`` for a row without ``include`` or without a drawn picture.
    Parts: ``count``, ``color``, ``position``, ``precision``, ``excess_objects``, ``strict``.
    """

    def __init__(
        self,
        detector: str | Detector | BatchDetector | type = "dina.recipes.scenes.detector:ShapeDetector",
        mode: Literal["strict", "graded", "benchmark"] = "graded",
        detector_kwargs: dict[str, Any] | None = None,
        colors: str | ColorReader | None = None,
    ) -> None:
        if mode not in ("strict", "graded", "benchmark"):
            raise ValueError(f"mode must be 'strict', 'graded' or 'benchmark', not {mode!r}")
        self.detector = build_part(detector, DETECTORS, detector_kwargs, "detector")
        self.mode = mode
        self.colors = _clip_colors(colors) if isinstance(colors, str) else colors

    def __call__(
        self,
        generated_images: Sequence[Image.Image | None],
        include: Sequence[list[dict[str, Any]] | None],
        exclude: Sequence[list[dict[str, Any]] | None] | None = None,
        tag: Sequence[str | None] | None = None,
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        nothing = [None] * len(include)
        rows = zip(generated_images, include, exclude or nothing, tag or nothing, strict=True)
        wishes = [
            _Wish(np.asarray(image.convert("RGB")), wanted, unwanted or (), kind)
            if image and wanted
            else None
            for image, wanted, unwanted, kind in rows
        ]
        found = iter(self._detect([wish for wish in wishes if wish]))
        results = [self._judge(wish, next(found)) if wish else None for wish in wishes]
        log_parts(log_extra, [s.parts | {"reason": s.reason} if s else None for s, _ in _pairs(results)])
        return [score for _, score in _pairs(results)]

    def score(self, image: np.ndarray, include: Clauses, exclude: Clauses = ()) -> SceneScore:
        """``image``: ``[H, W, 3]`` uint8."""
        wish = _Wish(image, include, exclude, None)
        return self._judge(wish, self._detect([wish])[0])[0]

    def _detect(self, wishes: Sequence[_Wish]) -> list[list[Detection]]:
        if not wishes:
            return []
        if not hasattr(self.detector, "detect_many"):
            found = [self.detector.detect(wish.image) for wish in wishes]
        else:
            found = self.detector.detect_many([w.image for w in wishes], [w.names for w in wishes])
        limit = getattr(self.detector, "counting_threshold", 0.0)
        sure = [
            [d for d in seen if d.score > limit] if wish.counting and limit else seen
            for wish, seen in zip(wishes, found, strict=True)
        ]
        if self.colors is None:
            return sure
        pairs = zip(wishes, sure, strict=True)
        return [self.colors.name(w.image, seen, w.coloured) if w.coloured else seen for w, seen in pairs]

    def _judge(self, wish: _Wish, found: Sequence[Detection]) -> tuple[SceneScore, float]:
        scene = score_scene(found, wish.include, wish.exclude)
        if self.mode == "benchmark":
            return scene, float(benchmark_correct(found, wish.include, wish.exclude))
        return scene, getattr(scene, self.mode)


@dataclass(frozen=True)
class _Wish:
    """A picture and what its prompt asks for."""

    image: np.ndarray
    include: Clauses
    exclude: Clauses
    tag: str | None

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(str(entry["class"]) for entry in [*self.include, *self.exclude]))

    @property
    def coloured(self) -> set[str]:
        return {str(entry["class"]) for entry in self.include if entry.get("color")}

    @property
    def counting(self) -> bool:
        """By the prompt's tag; a prompt without one counts where it asks for several of a class."""
        if self.tag:
            return self.tag == "counting"
        return any((entry.get("count") or 1) > 1 for entry in self.include)


def _pairs(
    results: Sequence[tuple[SceneScore, float] | None],
) -> list[tuple[SceneScore | None, float | None]]:
    return [result or (None, None) for result in results]


def _clip_colors(model: str) -> ColorReader:
    from dina.rewards.detectors.colors import ClipColors  # it builds on this module

    return ClipColors(model)
