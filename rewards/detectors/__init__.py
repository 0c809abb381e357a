"""Object detectors with pretrained weights, behind the protocol of :mod:`dina.rewards.detection`.

Add one: a class with ``detect_many(images, names)`` (or just ``detect(image)``), and a line in the table or
``detector: package.module:Class`` in the recipe.
"""

from __future__ import annotations

DETECTORS = {
    "mask2former": "dina.rewards.detectors.closed:Mask2FormerDetector",
    "rt_detr": "dina.rewards.detectors.closed:RTDetrDetector",
    "d_fine": "dina.rewards.detectors.closed:DFineDetector",
    "owlv2": "dina.rewards.detectors.open_vocabulary:Owlv2Detector",
    "mm_grounding_dino": "dina.rewards.detectors.open_vocabulary:GroundingDinoDetector",
}
