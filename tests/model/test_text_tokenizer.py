from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from dina.errors import DinaError
from dina.model.processor import IMAGE_TOKENS
from dina.model.text_tokenizer import FIRST_TOKENS, SMALLEST, add_special_tokens, train_text_tokenizer

CORPUS = ["a red star left of a blue circle", "three green squares and 12 yellow rings"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_text_tokenizer(CORPUS, 290)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_ids_stand_in_the_order_of_the_contract(tokenizer):
    assert tokenizer.convert_tokens_to_ids(FIRST_TOKENS) == list(range(7))
    pictures = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS.values()))
    assert pictures == list(range(290, 296)) and len(tokenizer) == 296
    named = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert named == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "text", ["a red star", "Zoë 日本語 ☃️\n\t x  12,345", "<longcat_user> no role", "\x00\u202e🧿"]
)
def test_any_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert max(ids(tokenizer, text)) < 290


def test_every_digit_is_a_token(tokenizer):
    assert tokenizer.tokenize("a128 8") == ["a", "1", "2", "8", "Ġ", "8"]


def test_special_tokens_are_left_out_of_decoded_text(tokenizer):
    eos, user = tokenizer.convert_tokens_to_ids(["</longcat_s>", "<longcat_user>"])
    assert tokenizer.decode([user, *ids(tokenizer, "yes"), eos], skip_special_tokens=True) == "yes"


def test_reload_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert ids(again, "a red star 12") == ids(tokenizer, "a red star 12")


def test_a_poor_corpus_gives_fewer_tokens_and_says_so(caplog):
    small = train_text_tokenizer(["ab ab"], 400)
    assert len(small) == SMALLEST + 2 + len(IMAGE_TOKENS) and "not 400" in caplog.text


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(DinaError, match="263"):
        train_text_tokenizer(CORPUS, 100)


def test_special_tokens_are_added_once(tokenizer):
    assert add_special_tokens(tokenizer) == 0 and len(tokenizer) == 296
