"""The DiNA model inside vLLM: any backbone that vLLM knows, with our own code embedding and depth head."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix

from dina.errors import DinaError
from dina.model.config import DinaConfig
from dina.model.depth_head import DepthHead
from dina.model.embeddings import CodeEmbedding
from dina.rollout.depth_sampler import DepthSampler
from dina.rollout.vllm_wire import Vocabulary

_CODE_EMBEDDING = "model.visual_tokenizer.visual_embedding_layer."
_BACKBONE = "model."


class DinaForConditionalGeneration(nn.Module):
    """Loads the folder that ``save_checkpoint`` writes as it is; the names of its weights are mapped here.

    The code embedding and the depth head are the very modules that train, in plain torch; under tensor
    parallelism every rank holds a whole copy. Sampling is the runner's task (``vllm_runner``): it writes the
    embeddings of image positions, and asks for text logits of the rows that need them alone.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert isinstance(config, DinaConfig)
        self.config, self.vocabulary = config, Vocabulary.of(config)
        text_config: Any = copy.deepcopy(config.text_config)
        # vLLM's causal LM comes with a head over all rows, codes included. Tied, it costs nothing.
        text_config.tie_word_embeddings = True
        self.language_model: Any = init_vllm_registered_model(
            vllm_config, prefix=maybe_prefix(prefix, "language_model"), hf_config=text_config
        )
        if not hasattr(self.language_model, "model"):
            raise DinaError(
                f"backbone {text_config.model_type!r}: vLLM's class for it keeps its layers under another name "
                "than 'model'; use rollout.engine=torch"
            )
        hidden, sizes = text_config.hidden_size, list(config.codebook_sizes)
        self.rows = config.text_vocab_plus_multimodal_special_token_size
        self.lm_head: ParallelLMHead | None = None
        self.head_logits: LogitsProcessor | None = None
        if not config.tie_word_embeddings:
            self.lm_head = ParallelLMHead(self.rows, hidden, prefix=maybe_prefix(prefix, "lm_head"))
            self.head_logits = LogitsProcessor(self.rows)
        self.tied_logits = LogitsProcessor(text_config.vocab_size)
        self.code_embedding = CodeEmbedding(
            hidden,
            config.visual_embedding_layer_intermediate_size,
            sizes,
            config.visual_offset,
            config.visual_embedding_layer_hidden_act,
            config.visual_embedding_layer_eps,
        )
        self.visual_head = DepthHead(
            hidden,
            config.image_head_transformer_dims,
            config.image_head_transformer_layers,
            config.image_head_transformer_ffn_scale,
            sizes,
            config.image_head_head_dim,
            config.image_head_eps,
        )
        self._forced = torch.tensor(config.forced_token_ids)  # vLLM builds models under the device's context
        self._logits_deferred = False
        self._depth_sampler: DepthSampler | None = None

    def embed_input_ids(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``[N]`` to ``[N, H]``. Ids of image positions lie outside the table; the runner overwrites their rows."""
        return self.language_model.embed_input_ids(
            torch.where(input_ids < self.vocabulary.first_code_id, input_ids, 0)
        )

    def embed_codes(self, codes: Tensor) -> Tensor:
        """``[N, L]`` codes to the input embeddings ``[N, H]`` of their positions."""
        return self.code_embedding(codes, self.language_model.embed_input_ids)

    def embed_level(self, codes: Tensor, level: int) -> Tensor:
        return self.code_embedding.embed_level(codes, level, self.language_model.embed_input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """``[N, H]`` to ``[N, V]`` float32; tokens that only the layout may set get -inf."""
        if self.lm_head is not None and self.head_logits is not None:
            logits = self.head_logits(self.lm_head, hidden)
        elif get_tensor_model_parallel_world_size() == 1:
            logits = F.linear(hidden, self.language_model.lm_head.weight[: self.rows])
        else:
            # The table is cut by rows, so its first rows are not the first rows of each part.
            logits = self.tied_logits(self.language_model.lm_head, hidden)[..., : self.rows]
        return logits.float().index_fill(-1, self._forced, -math.inf)

    def sample_codes(self, hidden: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Hidden states ``[N, H]`` to codes ``[N, L]``; ``choose`` maps a level's logits to its codes."""
        if self._depth_sampler is None:
            self._depth_sampler = DepthSampler(self.visual_head)
        return self._depth_sampler.sample(hidden, self.embed_level, choose)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """vLLM's own call: logits over all ids, codes at -inf; nothing while they are deferred."""
        if self._logits_deferred:
            return hidden_states.new_empty(hidden_states.shape[0], 0)
        logits = self.text_logits(hidden_states)
        return F.pad(logits, (0, self.vocabulary.first_code_id - self.rows), value=-math.inf)

    @contextmanager
    def deferred_logits(self) -> Iterator[None]:
        """Within, ``compute_logits`` does nothing: rows that draw codes need no logits of text."""
        self._logits_deferred = True
        try:
            yield
        finally:
            self._logits_deferred = False

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Takes the names of a DiNA checkpoint. Every way of updating weights comes through here."""
        self._depth_sampler = None
        return AutoWeightsLoader(self).load_weights((own_name(name), tensor) for name, tensor in weights)


def own_name(name: str) -> str:
    """The name inside vLLM of a checkpoint's weight."""
    if name.startswith(_CODE_EMBEDDING):
        return "code_embedding." + name.removeprefix(_CODE_EMBEDDING)
    if name.startswith(_BACKBONE):
        return "language_model.model." + name.removeprefix(_BACKBONE)
    return name
