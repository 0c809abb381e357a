from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dina.errors import DinaError
from dina.model.processor import NO_LOSS
from dina.rollout.answers import AnswerScorer
from tests.tiny_checkpoint import save_tiny_checkpoint

QUESTIONS = ["how many?", "a red star", "how many?"]
ANSWERS = ["3", "a star", ""]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return AnswerScorer(save_tiny_checkpoint(tmp_path_factory.mktemp("judge")), batch_size=2)


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8))


def test_an_answers_probability_is_minus_its_loss_in_supervised_training(scorer, images):
    model, codec = scorer.engine.model, scorer.engine.codec
    codes = codec.visual_tokenizer.encode([torch.from_numpy(im).permute(2, 0, 1) / 255 for im in images])
    found = scorer.log_probs(images, QUESTIONS, ANSWERS)
    for logp, question, answer, picture in zip(found, QUESTIONS, ANSWERS, codes, strict=True):
        content = [{"type": "image", "codes": picture}, {"type": "text", "text": question}]
        row = scorer.processor.encode(
            [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        )
        spoken = row.labels != NO_LOSS
        with torch.no_grad():
            hidden = model.hidden_states(row.stream)[0, :-1][spoken[1:]]
            loss = F.cross_entropy(model.text_logits(hidden), row.labels[spoken], reduction="sum")
        assert logp == pytest.approx(-float(loss), abs=1e-4)


def test_the_picture_matters_and_the_batch_does_not(scorer, images):
    both = scorer.log_probs(images[:2], QUESTIONS[:1] * 2, ANSWERS[:1] * 2)
    assert both[0] != both[1]
    assert scorer.log_probs(images[:1], QUESTIONS[:1], ANSWERS[:1]) == [pytest.approx(both[0], abs=1e-5)]


def test_a_question_beyond_the_context_is_an_error(scorer, images):
    with pytest.raises(DinaError, match="context"):
        scorer.log_probs(images[:1], ["how many? " * 60], ["3"])
