from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dina.errors import DinaError
from dina.rewards.detection import Detection
from dina.rewards.detectors import DETECTORS
from dina.rewards.detectors.base import PretrainedDetector, keep_best, overlap
from dina.rewards.detectors.closed import class_names, mask_box
from dina.rewards.detectors.colors import COLORS, ClipColors, crop
from dina.rewards.detectors.open_vocabulary import token_spans
from dina.rewards.objects import ObjectsReward
from dina.rewards.registry import load_object
from tests.rewards import tiny_models

BUILDERS = {
    "mask2former": tiny_models.mask2former,
    "rt_detr": tiny_models.rt_detr,
    "d_fine": tiny_models.d_fine,
    "owlv2": tiny_models.owlv2,
    "mm_grounding_dino": tiny_models.grounding_dino,
}
NAMES = ["fire hydrant", "dog", "person"]
COCO = {"person", "motorcycle", "computer mouse", "tv"}


def noise(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def boxed(*numbers: float, label: str = "dog", score: float = 1.0) -> Detection:
    return Detection(label, None, numbers, score)


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def detector(request, tmp_path_factory) -> PretrainedDetector:
    folder = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_object(DETECTORS[request.param])(folder, threshold=0.0, device="cpu")


def test_every_detector_has_a_tiny_model():
    assert set(BUILDERS) == set(DETECTORS)


def test_detections_are_inside_the_picture_named_and_best_first(detector: PretrainedDetector):
    images = [noise(0), noise(1)]
    both = detector.detect_many(images, [NAMES, NAMES])
    assert len(both) == 2 and all(both)
    for seen in both:
        assert [d.score for d in seen] == sorted((d.score for d in seen), reverse=True)
        for d in seen:
            x0, y0, x1, y1 = d.box
            assert 0 <= x0 <= x1 <= 64 and 0 <= y0 <= y1 <= 48
            assert 0 <= d.score <= 1 and d.color is None
            assert d.label in COCO | set(NAMES)
            if d.mask is not None:
                assert d.mask.shape == (48, 64) and mask_box(d.mask) == d.box
    alone = detector.detect_many(images[1:], [NAMES])
    assert len(alone[0]) == len(both[1])
    for one, other in zip(alone[0], both[1], strict=True):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.box == pytest.approx(other.box, abs=0.05)


def test_nothing_is_seen_above_a_threshold_of_one(detector: PretrainedDetector):
    low, detector.threshold = detector.threshold, 1.0
    assert detector.detect_many([noise(0)], [NAMES]) == [[]]
    detector.threshold = low


def test_only_mask2former_gives_masks_and_spells_as_geneval_does(tmp_path):
    folder = tiny_models.mask2former(tmp_path)
    found = load_object(DETECTORS["mask2former"])(folder, threshold=0.0, device="cpu")
    [seen] = found.detect_many([noise(2)], [()])
    assert all(d.mask is not None for d in seen) and {d.label for d in seen} <= COCO
    assert class_names(tiny_models.CLASSES) == {0: "person", 1: "motorcycle", 2: "computer mouse", 3: "tv"}


def test_owlv2_finds_the_same_whatever_the_order_of_names_and_the_neighbours(tmp_path):
    found = load_object(DETECTORS["owlv2"])(tiny_models.owlv2(tmp_path), threshold=0.0, device="cpu")
    wide, tall = noise(3, 32, 64), noise(4, 64, 32)
    # One name beside three: the shorter list is padded in the batch, and the padding must never win.
    first, second = found.detect_many([wide, tall], [["dog"], NAMES])
    assert {d.label for d in first} == {"dog"}
    [turned] = found.detect_many([tall], [NAMES[::-1]])
    assert {(d.label, d.box) for d in turned} == {(d.label, d.box) for d in second}


def test_open_vocabulary_needs_names(tmp_path):
    found = load_object(DETECTORS["owlv2"])(tiny_models.owlv2(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="which classes to look for"):
        found.detect_many([noise(0)], [[]])


def test_reward_runs_a_detector_and_reads_colours(tmp_path):
    folder, clip = tiny_models.mask2former(tmp_path / "m"), tiny_models.clip(tmp_path / "c")
    kwargs = {"model": folder, "threshold": 0.0, "device": "cpu"}
    reward = ObjectsReward("mask2former", detector_kwargs=kwargs, colors=clip)
    image = Image.fromarray(noise(0))
    logged: dict[str, list] = {}
    include = [{"class": "tv", "count": 1, "color": "red"}]
    scores = reward([image, None], [include, include], log_extra=logged.__setitem__)
    assert scores[1] is None and 0 <= scores[0] <= 1
    assert logged["color"][0] in (0.0, 1.0)


def test_unknown_detectors_and_models_are_errors_with_advice(tmp_path):
    with pytest.raises(DinaError, match="no detector 'owlv3': did you mean 'owlv2'"):
        ObjectsReward("owlv3")
    missing = load_object(DETECTORS["rt_detr"])(str(tmp_path / "nothing"))
    with pytest.raises(DinaError, match="cannot be loaded by AutoModelForObjectDetection"):
        missing.detect_many([noise(0)], [()])
    with pytest.raises(ValueError, match="threshold must be in"):
        load_object(DETECTORS["rt_detr"])("x", threshold=30)


@pytest.mark.parametrize(
    "other, expected",
    [((0, 0, 10, 10), 1.0), ((5, 0, 15, 10), 1 / 3), ((20, 20, 30, 30), 0.0), ((2, 2, 2, 9), 0.0)],
)
def test_overlap(other, expected: float):
    assert overlap((0, 0, 10, 10), other) == pytest.approx(expected)
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def test_suppression_keeps_the_better_box_of_a_class_and_every_other_class():
    near = [boxed(0, 0, 10, 10, score=0.5), boxed(1, 0, 11, 10, score=0.9), boxed(40, 0, 50, 10, score=0.4)]
    cat = boxed(0, 0, 10, 10, label="cat", score=0.3)
    assert keep_best([*near, cat], nms=1.0) == [near[1], near[0], near[2], cat]
    assert keep_best([*near, cat], nms=0.5) == [near[1], near[2], cat]
    many = [boxed(20 * i, 0, 20 * i + 10, 10, score=0.5) for i in range(20)]
    assert keep_best([*many, cat]) == [*many[:16], cat]


def test_tokens_of_names_are_told_apart():
    # [CLS] fire hydrant . dog . [SEP] [PAD]
    assert token_spans([101, 200, 201, 1012, 202, 1012, 102, 0], 1012, {101, 102, 0}) == [[1, 2], [4]]


class ColorSpace:
    """Stands in for CLIP where the truth is known: a picture is its mean colour, a text its colour word."""

    rgb = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def images(self, pictures):
        return self._unit([np.asarray(p, float).reshape(-1, 3).mean(0) for p in pictures])

    def texts(self, texts):
        self.asked += texts
        values = [next((v for k, v in self.rgb.items() if f" {k}" in text), (-1, -1, -1)) for text in texts]
        return self._unit(values)

    def _unit(self, values):
        rows = torch.tensor(np.array(values), dtype=torch.float64)
        return rows / rows.norm(dim=-1, keepdim=True)


def test_colours_are_read_from_the_masked_crop_of_the_asked_labels_only():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:] = (0, 0, 250)
    image[5:15, 5:15] = (250, 10, 10)
    mask = np.zeros((20, 40), bool)
    mask[5:15, 5:15] = True
    loose = (0.0, 0.0, 20.0, 20.0)  # mostly blue ground around the red thing
    reader = ClipColors("unused")
    reader.clip = ColorSpace()  # type: ignore[assignment]
    found = [Detection("kite", None, loose, 0.9, mask), Detection("kite", None, loose, 0.8), boxed(*loose)]
    named = reader.name(image, found, {"kite"})
    assert [d.color for d in named] == ["red", "blue", None]
    assert named[0].mask is mask and named[2] is found[2]
    assert len(reader.clip.asked) == 3 * len(COLORS)  # the classifier of a label is made once
    assert crop(image, found[0]).getpixel((0, 0)) == (0x99, 0x99, 0x99)
    assert crop(image, found[1]).getpixel((0, 0)) == (0, 0, 250)
    assert crop(image, boxed(3.2, 3.2, 3.4, 3.4)).size == (1, 1)
