"""A byte-level BPE tokenizer with LongCat's special tokens (docs/format.md), trained on a corpus of any size."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dina.errors import DinaError
from dina.model.processor import EOS, IMAGE_TOKENS, ROLE_TOKENS

logger = logging.getLogger(__name__)

UNK, BOS, PAD = "<longcat_unk>", "<longcat_s>", "<longcat_pad>"
FIRST_TOKENS = [UNK, BOS, EOS, PAD, *ROLE_TOKENS.values()]
SMALLEST = len(FIRST_TOKENS) + 256  # one token for every byte, so that any text can be written


def train_text_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns the merges of ``corpus`` and adds the special tokens.

    Ids: ``FIRST_TOKENS`` from 0 on, the 256 bytes, the merges up to ``vocab_size``, and after them the tokens
    of pictures. Every digit is a token of its own. Any unicode text survives a round trip.

    Args:
        corpus: texts like those that the model will read and write.
        vocab_size: number of ids before those of pictures (``text_vocab_size``). A corpus with too few words
            to merge gives fewer, which is logged.

    Raises:
        DinaError: ``vocab_size`` leaves no room for the 256 bytes.
    """
    if vocab_size < SMALLEST:
        raise DinaError(
            f"a text vocabulary of {vocab_size} is too small; bytes and roles alone need {SMALLEST}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=FIRST_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    if bpe.get_vocab_size() < vocab_size:
        logger.warning("the corpus gave %d text tokens, not %d", bpe.get_vocab_size(), vocab_size)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=UNK, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )
    add_special_tokens(tokenizer)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Gives a tokenizer the roles, eos and picture tokens that it lacks; returns how many were new.

    A pretrained tokenizer keeps its ids; the new ones follow them, and ``</longcat_s>`` becomes its eos.
    """
    wanted = [EOS, *ROLE_TOKENS.values(), *IMAGE_TOKENS.values()]
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in wanted if token not in vocabulary]
    tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    tokenizer.eos_token = EOS
    return len(missing)
