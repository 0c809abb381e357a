"""Rendered text, read by a real OCR engine and compared by edit distance."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from dina.errors import DinaError
from dina.rewards.protocol import LogExtra, log_parts

# Text of 10 px is read best at twice its size; 128 and 736 bound time on small and large pictures.
_MIN_SIDE, _MAX_SIDE = 128, 736
_NEVER_RESIZE = 32
_QUOTED = re.compile(
    r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|「([^」]+)」|『([^』]+)』'
    r"|‘(.+?)’(?!\w)|(?<!\w)'(.+?)'(?!\w)"
)


@dataclass(frozen=True)
class TextScore:
    """Outcome of :func:`score_text`; every number lies in [0, 1].

    Attributes:
        score: ``similarity * (1 - excess_cost * excess)``.
        similarity: the better one of ``matched`` and ``in_order``.
        matched: mean similarity of targets and lines, assigned one to one.
        in_order: similarity of all targets and all lines, each joined in reading order.
        excess: share of the characters read that goes beyond the number asked for.
    """

    score: float
    similarity: float
    matched: float
    in_order: float
    excess: float

    @property
    def parts(self) -> dict[str, float]:
        return {
            "similarity": self.similarity,
            "matched": self.matched,
            "in_order": self.in_order,
            "excess_text": self.excess,
        }


def score_text(lines: Sequence[str], targets: Sequence[str], excess_cost: float = 1.0) -> TextScore:
    """Compares the lines that were read with the texts that were asked for, both normalised already.

    The similarity of a target and a line is ``max(0, 1 - edit distance / length of the target)``. One text that
    OCR broke into two lines is made good by ``in_order``, texts that stand in another order by ``matched``.
    """
    table = np.array([[_similarity(line, target) for line in lines] for target in targets])
    matched = 0.0
    if lines:
        rows, columns = linear_sum_assignment(table, maximize=True)
        matched = float(table[rows, columns].sum()) / len(targets)
    read, asked = "".join(lines), "".join(targets)
    in_order = _similarity(read, asked)
    excess = max(0, len(read) - len(asked)) / max(len(read), 1)
    similarity = max(matched, in_order)
    return TextScore(similarity * (1 - excess_cost * excess), similarity, matched, in_order, excess)


def quoted(prompt: str) -> list[str]:
    """The quoted parts of a prompt, in straight, curly, low, angle or CJK quotes; apostrophes are no quotes."""
    return [next(filter(None, groups)) for groups in _QUOTED.findall(prompt)]


def normalise(text: str, ignore_case: bool = True, ignore_space: bool = True) -> str:
    """NFKC form (full-width letters and punctuation become plain ones), case folded, white space dropped."""
    text = unicodedata.normalize("NFKC", text)
    if ignore_case:
        text = text.casefold()
    return "".join(text.split()) if ignore_space else " ".join(text.split())


class OCRReward:
    """Reward: does the picture show the texts that were asked for, and no other?

    Args:
        ignore_case: compare without case.
        ignore_space: compare without white space.
        excess_cost: how much of the score surplus text can take, 0 (free) to 1.
        min_confidence: lines that the engine is less sure of are not read.

    Columns: ``text`` (list of strings); without it, the quoted words of the prompt. ``None`` where nothing is
    asked for. Parts: ``similarity``, ``matched``, ``in_order``, ``excess_text``. The engine is RapidOCR with
    the models of its wheel (Latin scripts, Chinese, Japanese), on one thread; it needs no network.
    """

    def __init__(
        self,
        ignore_case: bool = True,
        ignore_space: bool = True,
        excess_cost: float = 1.0,
        min_confidence: float = 0.3,
    ) -> None:
        if not 0 <= excess_cost <= 1:
            raise ValueError(f"excess_cost must be in [0, 1], not {excess_cost}")
        if importlib.util.find_spec("rapidocr") is None:
            raise DinaError("the ocr reward needs the packages rapidocr and onnxruntime: pip install them")
        self.ignore_case, self.ignore_space = ignore_case, ignore_space
        self.excess_cost, self.min_confidence = excess_cost, min_confidence
        self._engine: Any = None

    def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        text: Sequence[list[str] | str | None] | None = None,
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        wanted = [self.targets(p, t) for p, t in zip(prompts, text or [None] * len(prompts), strict=True)]
        scores: list[float | None] = []
        parts: list[dict[str, Any] | None] = []
        for image, targets in zip(generated_images, wanted, strict=True):
            if image is None or not targets:
                scores.append(None)
                parts.append(None)
                continue
            lines = self.read(np.asarray(image.convert("RGB")))
            result = self.compare(lines, targets)
            scores.append(result.score)
            parts.append(result.parts | {"reason": f"read {_show(lines)}, wanted {_show(targets)}"})
        log_parts(log_extra, parts)
        return scores

    def targets(self, prompt: str, text: list[str] | str | None) -> list[str]:
        """The texts asked for: the row's own, or the quoted words of the prompt if the row has none."""
        found = quoted(prompt) if text is None else [text] if isinstance(text, str) else text
        return [str(target) for target in found if self._normalise(str(target))]

    def compare(self, lines: Sequence[str], targets: Sequence[str]) -> TextScore:
        read = [line for line in map(self._normalise, lines) if line]
        return score_text(read, [self._normalise(target) for target in targets], self.excess_cost)

    def read(self, image: np.ndarray) -> list[str]:
        """The lines of text in ``image`` (``[H, W, 3]`` uint8 RGB), in reading order."""
        if self._engine is None:
            self._engine = _make_engine()
        short = min(image.shape[:2])
        factor = max(1.0, min(max(2 * short, _MIN_SIDE), _MAX_SIDE) / short)
        size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
        enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        bgr = np.ascontiguousarray(enlarged[:, :, ::-1])
        found = self._engine(bgr, use_cls=False, text_score=self.min_confidence)
        return list(found.txts or ())

    def _normalise(self, text: str) -> str:
        return normalise(text, self.ignore_case, self.ignore_space)


def _make_engine() -> Any:
    from rapidocr import RapidOCR  # heavy: loaded when the first picture is read

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Det.limit_side_len": _NEVER_RESIZE,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _similarity(line: str, target: str) -> float:
    return max(0.0, 1 - Levenshtein.distance(line, target) / len(target))


def _show(texts: Sequence[str]) -> str:
    return ", ".join(repr(text) for text in texts) or "nothing"
