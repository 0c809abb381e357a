"""Detectors that know the 80 classes of COCO: Mask2Former, RT-DETRv2 and D-FINE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from dina.rewards.detection import Box, Detection
from dina.rewards.detectors.base import Names, PretrainedDetector, clipped

# Checkpoints spell COCO's classes in three ways; the prompts use GenEval's.
GENEVAL_NAMES = {
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "remote": "tv remote",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}


def class_names(id2label: Mapping[int, str]) -> dict[int, str]:
    """A checkpoint's class names as GenEval spells them."""
    return {int(key): GENEVAL_NAMES.get(label, label) for key, label in id2label.items()}


class Mask2FormerDetector(PretrainedDetector):
    """GenEval's own detector, through transformers; its masks are what colours are read from."""

    default_model = "facebook/mask2former-swin-small-coco-instance"
    auto_model = "AutoModelForUniversalSegmentation"

    def _infer(self, pictures: list[Image.Image], names: Sequence[Names]) -> list[list[Detection]]:
        model, processor = self._loaded
        inputs = processor(images=pictures, return_tensors="pt").to(model.device)
        answers = processor.post_process_instance_segmentation(
            model(**inputs),
            threshold=self.threshold,
            target_sizes=[(picture.height, picture.width) for picture in pictures],
            return_binary_maps=True,
        )
        labels = class_names(model.config.id2label)
        found: list[list[Detection]] = []
        for answer in answers:
            segments = answer["segments_info"]
            # Without a segment the map is one plane of -1, not a stack of masks.
            masks = answer["segmentation"].cpu().numpy().astype(bool) if segments else ()
            found.append(
                [
                    Detection(labels[segment["label_id"]], None, mask_box(mask), segment["score"], mask)
                    for segment, mask in zip(segments, masks, strict=True)
                    if mask.any()
                ]
            )
        return found


class RTDetrDetector(PretrainedDetector):
    """RT-DETRv2: boxes only, fast."""

    default_model = "PekingU/rtdetr_v2_r18vd"
    auto_model = "AutoModelForObjectDetection"

    def _infer(self, pictures: list[Image.Image], names: Sequence[Names]) -> list[list[Detection]]:
        model, processor = self._loaded
        inputs = processor(images=pictures, return_tensors="pt").to(model.device)
        sizes = torch.tensor([(picture.height, picture.width) for picture in pictures], device=model.device)
        answers = processor.post_process_object_detection(
            model(**inputs), threshold=self.threshold, target_sizes=sizes
        )
        labels = class_names(model.config.id2label)
        return [
            [
                Detection(labels[label], None, clipped(box, picture), score)
                for label, box, score in zip(
                    answer["labels"].tolist(),
                    answer["boxes"].tolist(),
                    answer["scores"].tolist(),
                    strict=True,
                )
            ]
            for answer, picture in zip(answers, pictures, strict=True)
        ]


class DFineDetector(RTDetrDetector):
    """D-FINE: answers as RT-DETR does, more exact boxes."""

    default_model = "ustc-community/dfine-xlarge-coco"


def mask_box(mask: np.ndarray) -> Box:
    """The tightest box around a boolean mask ``[H, W]`` that is not empty."""
    ys, xs = np.nonzero(mask)
    return (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
