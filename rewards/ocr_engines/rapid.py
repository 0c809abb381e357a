"""RapidOCR: PP-OCR's models by ONNX Runtime, on the CPU and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dina.errors import DinaError, advice
from dina.rewards.ocr_engines import enlarged

_NEVER_RESIZE = 32


class RapidOCREngine:
    """The default engine. Its wheel brings the models for Latin scripts, Chinese and Japanese.

    Args:
        language: a script of RapidOCR's recognition models; any but ``ch`` (which reads Latin, Chinese and Japanese)
            is downloaded by RapidOCR when it is first used.
        min_confidence: lines that the engine is less sure of are not read.
        threads: of ONNX Runtime. Several engines with one thread each are faster than one engine with several.
    """

    def __init__(self, language: str = "ch", min_confidence: float = 0.3, threads: int = 1) -> None:
        self.language, self.min_confidence, self.threads = language, min_confidence, threads

    def read_many(self, images: Sequence[np.ndarray]) -> list[list[str]]:
        return [self._read(image) for image in images]

    def _read(self, image: np.ndarray) -> list[str]:
        bgr = np.ascontiguousarray(enlarged(image)[:, :, ::-1])
        found = self._engine(bgr, use_cls=False, text_score=self.min_confidence)
        return list(found.txts or ())

    @cached_property
    def _engine(self) -> Any:
        from rapidocr import LangRec, RapidOCR  # heavy: loaded when the first picture is read

        scripts = {script.value: script for script in LangRec}
        if self.language not in scripts:
            raise DinaError(f"rapidocr has no language {self.language!r}: {advice(self.language, scripts)}")
        parameters: dict[str, Any] = {
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "Det.limit_side_len": _NEVER_RESIZE,
            "EngineConfig.onnxruntime.intra_op_num_threads": self.threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": self.threads,
        }
        if self.language != "ch":
            from rapidocr import ModelType, OCRVersion

            # The version of the default models has one recogniser for all of its languages.
            parameters |= {
                "Rec.lang_type": scripts[self.language],
                "Rec.ocr_version": OCRVersion.PPOCRV5,
                "Rec.model_type": ModelType.MOBILE,
            }
        return RapidOCR(params=parameters)
