"""Detectors that look for the names they are given: OWLv2 and MM-GroundingDINO.

They are told the classes of a prompt's ``include`` and ``exclude``, so an object of any other class is unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from dina.rewards.detection import Detection
from dina.rewards.detectors.base import Names, PretrainedDetector, clipped


class Owlv2Detector(PretrainedDetector):
    """OWLv2 (Minderer et al. 2023): one query per class name, in CLIP's words."""

    default_model = "google/owlv2-base-patch16-ensemble"
    auto_model = "AutoModelForZeroShotObjectDetection"
    auto_processor = "AutoProcessor"

    def _infer(self, pictures: list[Image.Image], names: Sequence[Names]) -> list[list[Detection]]:
        model, processor = self._loaded
        _check(names)
        queries = [[f"a photo of a {name}" for name in wanted] for wanted in names]
        inputs = processor(images=pictures, text=queries, return_tensors="pt").to(model.device)
        output = model(**inputs)
        found: list[list[Detection]] = []
        for row, (picture, wanted) in enumerate(zip(pictures, names, strict=True)):
            # Shorter lists of names are padded with blank queries, which are real to the model: cut them off.
            scores, labels = output.logits[row, :, : len(wanted)].sigmoid().max(dim=-1)
            # The processor pads a picture to a square at its right and lower side.
            boxes = _corners(output.pred_boxes[row]) * max(picture.size)
            found.append(_detections(scores, labels, boxes, wanted, picture, self.threshold))
        return found


class GroundingDinoDetector(PretrainedDetector):
    """MM-GroundingDINO (Zhao et al. 2024) or Grounding DINO: one sentence of class names, scores per token.

    A class has the mean score of its tokens, as MMDetection takes it. (The phrases that transformers'
    post-processing cuts out can be a part of a name, or several names.)
    """

    default_model = "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det"
    auto_model = "AutoModelForZeroShotObjectDetection"
    auto_processor = "AutoProcessor"

    def _infer(self, pictures: list[Image.Image], names: Sequence[Names]) -> list[list[Detection]]:
        model, processor = self._loaded
        _check(names)
        sentences = [" ".join(f"{name.replace('.', ' ').lower()}." for name in wanted) for wanted in names]
        inputs = processor(images=pictures, text=sentences, padding=True, return_tensors="pt").to(
            model.device
        )
        output = model(**inputs)
        tokenizer = processor.tokenizer
        stop = tokenizer.convert_tokens_to_ids(".")
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        found: list[list[Detection]] = []
        for row, (picture, wanted) in enumerate(zip(pictures, names, strict=True)):
            spans = token_spans(inputs["input_ids"][row].tolist(), stop, special)
            probabilities = output.logits[row].sigmoid()
            of_class = torch.stack([probabilities[:, span].mean(dim=-1) for span in spans], dim=-1)
            scores, labels = of_class.max(dim=-1)
            size = torch.tensor([*picture.size, *picture.size], device=model.device)
            boxes = _corners(output.pred_boxes[row]) * size
            found.append(_detections(scores, labels, boxes, wanted, picture, self.threshold))
        return found


def token_spans(ids: Sequence[int], stop: int, special: set[int]) -> list[list[int]]:
    """Positions of the tokens of each name in a sentence ``name. other name.``; ``stop`` is the full stop."""
    spans: list[list[int]] = [[]]
    for position, token in enumerate(ids):
        if token == stop:
            spans.append([])
        elif token not in special:
            spans[-1].append(position)
    return [span for span in spans if span]


def _check(names: Sequence[Names]) -> None:
    if not all(names):
        raise ValueError("an open-vocabulary detector must be told which classes to look for")


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """``[N, 4]`` centre and size to corners."""
    center, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def _detections(
    scores: torch.Tensor,
    labels: torch.Tensor,
    boxes: torch.Tensor,
    names: Names,
    picture: Image.Image,
    threshold: float,
) -> list[Detection]:
    keep = scores > threshold
    rows = zip(labels[keep].tolist(), boxes[keep].tolist(), scores[keep].tolist(), strict=True)
    return [Detection(names[label], None, clipped(box, picture), score) for label, box, score in rows]
