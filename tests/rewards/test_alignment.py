from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dina.errors import DinaError
from dina.rewards.alignment.clip_score import CLIPScoreReward
from dina.rewards.alignment.formats import ExpectedScore, TaggedScore, UnifiedRewardScore, make_format
from dina.rewards.alignment.judge import VLMReward
from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from tests.rewards import tiny_models
from tests.rewards.judge_server import message, serving, tokens
from tests.rewards.samples import answer, picture


def photo(seed: int, width: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "probabilities, score, mass",
    [
        ({"5": 1.0}, 1.0, 1.0),
        ({"1": 0.5, "5": 0.5}, 0.5, 1.0),
        ({"1": 0.1, "5": 0.1, "The": 0.8}, 0.5, 0.2),  # renormalised over the labels
        ({"4": 0.2, " 4": 0.2, "2": 0.4}, 0.5, 0.8),  # tokens of one label are added
        ({"6": 1.0}, None, None),
        ({}, None, None),
    ],
)
def test_expected_score(probabilities, score, mass):
    judgement = ExpectedScore().weigh(probabilities)
    assert judgement.score == (None if score is None else pytest.approx(score))
    assert judgement.parts.get("rating_mass") == (None if mass is None else pytest.approx(mass))


@pytest.mark.parametrize(
    "text, score",
    [
        ("Alignment Score (1-5): 5\nCoherence Score (1-5): 3\nStyle Score (1-5): 1", 0.5),
        ("**Alignment Score (1-5)**: 4.5\n**Coherence Score (1-5):** 4.5\n**Style Score (1-5):** 4.5", 0.875),
        ("alignment score: 2 coherence score: 2 style score: 2", 0.25),
        ("Alignment Score (1-5): 5\nStyle Score (1-5): 1", None),
        ("Alignment Score (1-5): X\nCoherence Score (1-5): 3\nStyle Score (1-5): 1", None),
        ("Alignment Score (1-5): 7\nCoherence Score (1-5): 3\nStyle Score (1-5): 1", None),
        ("", None),
    ],
)
def test_unified_reward_score(text: str, score: float | None):
    assert UnifiedRewardScore().read(text).score == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    "text, score",
    [
        ("Good. <score>7</score>", 0.7),
        ("<score>1</score> no, <Score> 8.5/10 </Score>", 0.85),
        ("<score>11</score>", None),
        ("<score>-1</score>", None),
        ("seven", None),
    ],
)
def test_tagged_score(text: str, score: float | None):
    assert TaggedScore().read(text).score == score


def test_instructions_hold_the_prompt_and_formats_have_names():
    assert 'asked for: "{a} 50%"' in ExpectedScore().question("{a} 50%")
    assert make_format("tagged", "Judge {prompt} as {json}").question("it") == "Judge it as {json}"
    with pytest.raises(DinaError, match="must hold {prompt}"):
        ExpectedScore("How good?")
    with pytest.raises(DinaError, match="no score format 'tagd': did you mean 'tagged'"):
        make_format("tagd")


def test_clip_score_is_the_cosine_of_the_model(tmp_path):
    folder = tiny_models.clip(tmp_path)
    images, prompts = [photo(0), None, photo(1)], ["a red star", "x", "two blue circles " * 20]
    logged: dict[str, list] = {}
    reward = CLIPScoreReward(folder, device="cpu", batch_size=1)
    scores = reward(prompts, images, log_extra=logged.__setitem__)

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    for i in (0, 2):
        inputs = processor(
            images=images[i],
            text=["A photo depicts " + prompts[i]],
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            cosine = model(**inputs).logits_per_image.item() / model.logit_scale.exp().item()
        assert scores[i] == pytest.approx(2.5 * max(cosine, 0), abs=1e-4)
        assert logged["cosine"][i] == pytest.approx(cosine, abs=1e-4)
    assert scores[1] is None and logged["cosine"][1] is None
    assert CLIPScoreReward(folder, device="cpu")(prompts, images) == pytest.approx(scores, abs=1e-4)
    assert reward(["x"], [None]) == [None]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory) -> str:
    return tiny_models.llava(tmp_path_factory.mktemp("llava"))


def test_local_judge_weighs_the_labels_of_one_token(judge_folder: str):
    reward = VLMReward(judge_folder, device="cpu", instruction="Rate {prompt}: ")
    logged: dict[str, list] = {}
    images, prompts = [photo(0), None, photo(1, width=48)], ["a star", "x", "a much longer prompt than that"]
    scores = reward(prompts, images, log_extra=logged.__setitem__)
    assert scores[1] is None and all(0 <= scores[i] <= 1 for i in (0, 2))

    model = transformers.LlavaForConditionalGeneration.from_pretrained(judge_folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(judge_folder)
    text = "<|im_start|>user: <image>Rate a star: <|im_end|><|im_start|>assistant: "
    inputs = processor(images=images[0], text=text, return_tensors="pt")
    with torch.no_grad():
        shares = model(**inputs).logits[0, -1].softmax(-1)
    labels = shares[[processor.tokenizer.convert_tokens_to_ids(str(n)) for n in range(1, 6)]]
    expected = float((labels * torch.arange(1, 6)).sum() / labels.sum())
    # A longer neighbour pads the row; that changes nothing but rounding.
    assert scores[0] == pytest.approx((expected - 1) / 4, abs=1e-3)
    assert logged["rating_mass"][0] == pytest.approx(float(labels.sum()), abs=1e-3)


def test_a_free_answer_without_a_score_is_a_failure_that_shows_it(judge_folder: str):
    form = TaggedScore("Rate {prompt}", max_tokens=4)
    spec = RewardSpec("vlm", kwargs={"model": judge_folder, "form": form, "device": "cpu"})
    suite = RewardSuite([spec])
    result = suite.score([picture(np.asarray(photo(0))), answer("3")])
    suite.close()
    assert result.total == [None, None]
    assert [f.sample_index for f in result.failures] == [0]
    assert "no score from 0 to 10" in result.parts["vlm"][0]["reason"]


def endpoint(url: str, **kwargs) -> RewardSuite:
    spec = RewardSpec("vlm_endpoint", kwargs={"model": "judge", "base_url": url, **kwargs}, timeout=60)
    return RewardSuite([spec])


def test_endpoint_gets_the_pixels_and_the_prompt_and_gives_the_expected_score(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")

    def reply(body):
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        bright = np.asarray(image).mean() > 128
        return 200, tokens({"5": math.log(0.75), "1": math.log(0.25)} if bright else {"1": 0.0})

    white, black = np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)
    with serving(reply) as (url, requests):
        suite = endpoint(url, api_key_env="JUDGE_KEY", constrain=True, extra_body={"seed": 1})
        result = suite.score([picture(white, "a star"), picture(black, "a dog"), answer("3")])
        again = suite.score([picture(white, "a star")])
        suite.close()
    assert result.total == [pytest.approx(0.75), 0.0, None] and not result.failures
    assert again.total == [pytest.approx(0.75)]
    first = next(r for r in requests if "a star" in r["messages"][0]["content"][1]["text"])
    assert first["path"] == "/v1/chat/completions" and first["auth"] == "Bearer secret"
    assert first["model"] == "judge" and first["max_tokens"] == 1 and first["temperature"] == 0
    assert first["structured_outputs"] == {"choice": ["1", "2", "3", "4", "5"]} and first["seed"] == 1


def test_endpoint_speaks_the_text_formats():
    lines = "Alignment Score (1-5): 5\nCoherence Score (1-5): 5\nStyle Score (1-5): 2"
    with serving(lambda body: (200, message(lines))) as (url, requests):
        suite = endpoint(url, form="unified_reward")
        result = suite.score([picture()])
        suite.close()
    assert result.total == [pytest.approx(0.75)]
    assert result.parts["vlm_endpoint"][0]["style"] == 0.25
    assert "logprobs" not in requests[0] and "structured_outputs" not in requests[0]


def test_passing_troubles_are_retried_and_one_lasting_one_fails_its_sample_alone():
    calls: list[int] = []

    def reply(body):
        calls.append(1)
        if "cursed" in body["messages"][0]["content"][1]["text"]:
            return 400, "bad picture"
        return (503, "busy") if len(calls) < 3 else (200, message("<score>6</score>"))

    with serving(reply) as (url, _):
        suite = endpoint(url, form="tagged", concurrency=1, retries=2)
        result = suite.score([picture(prompt="a star"), picture(prompt="cursed")])
        suite.close()
    assert result.total == [pytest.approx(0.6), None]
    assert [f.sample_index for f in result.failures] == [1]
    assert "answered 400: bad picture" in result.parts["vlm_endpoint"][1]["reason"]


@pytest.mark.parametrize(
    "status, content, words",
    [
        (401, "no key", "answered 401: no key"),
        (200, "<html>", "answered with no JSON"),
        (200, {"choices": []}, "without log-probabilities"),
        (200, message("5"), "without log-probabilities"),
    ],
)
def test_wrong_answers_are_failures_that_say_why(status: int, content, words: str):
    with serving(lambda body: (status, content)) as (url, _):
        suite = endpoint(url)
        result = suite.score([picture()])
        suite.close()
    assert result.total == [None] and words in result.failures[0].reason


def test_an_endpoint_that_is_not_there_is_named():
    suite = endpoint("http://127.0.0.1:9/v1", retries=0)
    result = suite.score([picture()])
    suite.close()
    assert "http://127.0.0.1:9/v1/chat/completions cannot be reached" in result.failures[0].reason
    with pytest.raises(DinaError, match="no score format"):
        endpoint("http://127.0.0.1:9/v1", form="stars")
