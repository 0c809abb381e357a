from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from dina.errors import DinaError
from dina.model.build import NewModel, new_checkpoint, read_corpus
from dina.model.checkpoint import load_checkpoint, save_checkpoint
from dina.model.text_tokenizer import train_text_tokenizer
from tests.model.sft_world import corpus, new_model, rows, save_rows, save_visual_tokenizer


@pytest.fixture(scope="module")
def visual(tmp_path_factory):
    return save_visual_tokenizer(tmp_path_factory.mktemp("parts") / "visual")


def test_rows_and_ids_follow_the_tokenizers(visual):
    checkpoint = new_checkpoint(NewModel(**new_model(visual)))
    config, processor = checkpoint.model.config, checkpoint.processor
    assert config.text_vocab_size == 270 and config.text_vocab_plus_multimodal_special_token_size == 278
    assert config.visual_offset == 278 and config.codebook_sizes == [8, 8, 4]
    assert config.text_config.vocab_size == 298 == checkpoint.model.get_input_embeddings().num_embeddings
    assert processor.layout.start == config.image_start_token_id == 270
    assert processor.layout.size_end == config.image_size_end_token_id == 275
    assert (config.eos_token_id, config.pad_token_id) == (2, 3)


def test_the_seed_decides_the_weights_and_saving_keeps_them(visual, tmp_path):
    first, again, other = (new_checkpoint(NewModel(**new_model(visual, seed=s))).model for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    checkpoint = new_checkpoint(NewModel(**new_model(visual, seed=1)))
    save_checkpoint(checkpoint, tmp_path)
    loaded = load_checkpoint(tmp_path).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_a_pretrained_backbone_keeps_its_words(visual, tmp_path, tied):
    tokenizer = train_text_tokenizer(corpus(), 266)
    torch.manual_seed(3)
    fields = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=300, tie_word_embeddings=tied, **fields)
    )
    backbone.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    checkpoint = new_checkpoint(NewModel(**new_model(visual, backbone=str(tmp_path), text_tokenizer=None)))
    model = checkpoint.model
    assert torch.equal(model.model.embed_tokens.weight[:266], backbone.model.embed_tokens.weight[:266])
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, backbone.model.layers[0].mlp.up_proj.weight)
    assert (model.lm_head is None) == tied
    assert model.config.visual_offset >= 300


def test_a_corpus_is_a_function_or_files(tmp_path):
    assert list(read_corpus("tests.model.sft_world:corpus")) == corpus()
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    assert list(read_corpus([str(tmp_path / "words.txt")])) == ["one\n", "two\n"]


def test_a_corpus_may_be_the_training_data(tmp_path):
    data = save_rows(tmp_path / "data", count=4)
    texts = list(read_corpus(str(data)))
    assert {row["prompt"] for row in rows(4)} <= set(texts) and "" not in texts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_tokenizer": None}, "text_tokenizer"),
        ({"text_tokenizer": {"corpus": "no.such:thing", "vocab_size": 300}}, "no.such:thing"),
        ({"text_tokenizer": {"corpus": "missing.txt", "vocab_size": 300}}, "missing.txt"),
        ({"depth_head": {"layer": 1}}, "layers"),
        ({"visual_tokenizer": "nowhere"}, "nowhere"),
    ],
)
def test_a_missing_part_is_named(visual, changes, message):
    with pytest.raises(DinaError, match=message):
        new_checkpoint(NewModel(**new_model(visual, **changes)))
