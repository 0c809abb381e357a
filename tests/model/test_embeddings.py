from __future__ import annotations

import torch
from torch import nn

from dina.model.embeddings import CodeEmbedding
from tests.golden import load_golden, relative_error, weights_of


def test_code_embedding_matches_the_reference() -> None:
    tensors, metadata = load_golden("code_embedding")
    config = metadata["config"]
    module = CodeEmbedding(
        config["hidden_size"],
        config["visual_embedding_layer_intermediate_size"],
        config["codebook_sizes"],
        config["visual_offset"],
        config["visual_embedding_layer_hidden_act"],
        config["rms_norm_eps"],
    )
    module.load_state_dict(weights_of(tensors, ("embed_tokens",)))
    table = nn.Embedding.from_pretrained(tensors["embed_tokens.weight"])
    codes = tensors["in.codes"]
    assert torch.equal(module.global_ids(codes), tensors["out.global_ids"])
    assert relative_error(module.embed_levels(codes, table).sum(1), tensors["out.sum"]) < 1e-5
    assert relative_error(module(codes, table), tensors["out.embedding"]) < 1e-5
