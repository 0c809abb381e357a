"""The DiNA model: a causal backbone, code embeddings, a text head and a depth head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from dina.errors import DinaError
from dina.model.config import DinaConfig
from dina.model.depth_head import DepthHead
from dina.model.embeddings import CodeEmbedding
from dina.model.sampling import SamplingParams, entropy_of, guide
from dina.model.stream import TokenStream, pad_rows

LIKELIHOOD_BUDGET = 2**26  # logits held at once by one chunk of positions: 256 MiB in float32


@dataclass
class DinaOutput(ModelOutput):
    """``loss`` as in the SFT objective, its two parts, and the backbone's last hidden state ``[B, T, H]``."""

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    code_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None


class VisualEmbedding(nn.Module):
    """Carries the code embedding under the name the public checkpoint has for it."""

    def __init__(self, visual_embedding_layer: CodeEmbedding) -> None:
        super().__init__()
        self.visual_embedding_layer = visual_embedding_layer


class DinaForConditionalGeneration(PreTrainedModel):
    """One decoder that reads and writes text and image codes as a single stream.

    Parameter names are those of the LongCat-Next checkpoint (docs/format.md), with the layers of
    whatever backbone ``config.text_config`` names in place of LongCat's.
    """

    config_class = DinaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [r"visual_head\..*\.linear[12]\.bias"]

    def __init__(self, config: DinaConfig) -> None:
        super().__init__(config)
        text_config = config.text_config
        self.model = AutoModel.from_config(text_config)
        hidden, sizes = text_config.hidden_size, list(config.codebook_sizes)
        self.model.visual_tokenizer = VisualEmbedding(
            CodeEmbedding(
                hidden,
                config.visual_embedding_layer_intermediate_size,
                sizes,
                config.visual_offset,
                config.visual_embedding_layer_hidden_act,
                config.visual_embedding_layer_eps,
            )
        )
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            rows = config.text_vocab_plus_multimodal_special_token_size
            self.lm_head = nn.Linear(hidden, rows, bias=False)
        self.visual_head = DepthHead(
            hidden,
            config.image_head_transformer_dims,
            config.image_head_transformer_layers,
            config.image_head_transformer_ffn_scale,
            sizes,
            config.image_head_head_dim,
            config.image_head_eps,
            config.image_head_unused_bias,
        )
        self.post_init()

    @classmethod
    def from_backbone(cls, path: str, config: DinaConfig, **kwargs: Any) -> DinaForConditionalGeneration:
        """A new DiNA model around a pretrained causal LM; code rows and heads start at random.

        Args:
            path: folder or hub id of a Hugging Face causal LM whose text rows are the first rows of its
                embedding. ``config.text_config`` is replaced by its configuration, widened by the code rows.
            kwargs: for ``from_pretrained``. Weights are float32 unless ``dtype`` says otherwise: small updates
                vanish in bfloat16.

        Raises:
            DinaError: the folder lacks weights of the backbone.
        """
        source = AutoModelForCausalLM.from_pretrained(path, **{"dtype": torch.float32, **kwargs})
        text_rows = min(source.config.vocab_size, config.visual_offset)
        config.text_config = AutoConfig.for_model(
            **{**source.config.to_dict(), "vocab_size": config.total_rows}
        )
        model = cls(config).to(source.dtype)
        table = model.get_input_embeddings().weight
        own = {id(p): name for name, p in model.model.named_parameters()}
        weights = source.base_model.state_dict()
        rows = weights.pop(own[id(table)])
        table.data[:text_rows] = rows[:text_rows]
        missing, _ = model.model.load_state_dict(weights, strict=False)
        lost = [k for k in missing if k != own[id(table)] and not k.startswith("visual_tokenizer.")]
        if lost:
            raise DinaError(
                f"{path}: the backbone has no weights for {len(lost)} parameters, such as {lost[0]}"
            )
        if model.lm_head is not None:
            head = source.get_output_embeddings().weight.data
            count = min(len(head), len(model.lm_head.weight))
            model.lm_head.weight.data[:count] = head[:count]
        return model

    @property
    def code_embedding(self) -> CodeEmbedding:
        return self.model.visual_tokenizer.visual_embedding_layer

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def embed_stream(self, text_ids: Tensor, codes: Tensor | None) -> Tensor:
        """Input embeddings ``[B, T, H]``: word rows, replaced by code embeddings where there are codes."""
        embeddings = self.get_input_embeddings()(text_ids)
        if codes is None:
            return embeddings
        drawn = codes[..., 0] >= 0
        if not drawn.any():
            return embeddings
        values = self.code_embedding(codes[drawn], self.get_input_embeddings())
        return embeddings.masked_scatter(drawn[..., None], values.to(embeddings.dtype))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., V]`` float32; tokens that only the layout may set get -inf."""
        rows = self.config.text_vocab_plus_multimodal_special_token_size
        weight = self.get_input_embeddings().weight[:rows] if self.lm_head is None else self.lm_head.weight
        logits = F.linear(hidden, weight).float()
        forced = torch.tensor(self.config.forced_token_ids, device=logits.device)
        return logits.index_fill(-1, forced, -math.inf)

    def hidden_states(self, stream: TokenStream) -> Tensor:
        """The backbone's last hidden states ``[B, T, H]`` of a stream."""
        return self.model(
            inputs_embeds=self.embed_stream(stream.text_ids, stream.codes),
            attention_mask=stream.attention_mask,
            position_ids=stream.position_ids,
            use_cache=False,
        ).last_hidden_state

    def forward(
        self,
        input_ids: Tensor,
        codes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        code_labels: Tensor | None = None,
        code_loss_weight: float = 0.25,
        level_weights: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> DinaOutput:
        """Hidden states, and with labels the SFT objective (docs/format.md).

        Args:
            input_ids: ``[B, T]``. codes: ``[B, T, L]``, -1 where there are none. attention_mask: ``[B, T]``.
            labels: ``[B, T]`` text targets, aligned with ``input_ids``; -100 has no loss.
            code_labels: ``[B, T, L]`` code targets, aligned with ``codes``; -100 has no loss. The image-end
                position carries the extra class (the codebook's size) at every level.
            code_loss_weight: factor of the summed level losses at a position.
            level_weights: ``[L]``, 1 each by default.

        The loss is (sum of text losses + sum of weighted code losses) / number of target positions.
        """
        embeddings = self.embed_stream(input_ids, codes)
        output = self.model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = output.last_hidden_state
        result = DinaOutput(last_hidden_state=hidden, past_key_values=output.past_key_values)
        if labels is None and code_labels is None:
            return result
        text_sum, text_count = self._text_loss(hidden, labels)
        code_sum, code_count = self._code_loss(hidden, codes, code_labels, level_weights)
        total = (text_count + code_count).clamp_min(1)
        result.text_loss = text_sum.detach() / text_count.clamp_min(1)
        result.code_loss = code_sum.detach() / code_count.clamp_min(1)
        result.loss = (text_sum + code_loss_weight * code_sum) / total
        return result

    def _text_loss(self, hidden: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if labels is None:
            return hidden.sum() * 0, hidden.new_zeros(())
        target = labels[:, 1:] != -100
        logits = self.text_logits(hidden[:, :-1][target])
        return F.cross_entropy(logits, labels[:, 1:][target], reduction="sum"), target.sum()

    def _code_loss(
        self, hidden: Tensor, codes: Tensor | None, code_labels: Tensor | None, level_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if codes is None or code_labels is None:
            return hidden.sum() * 0, hidden.new_zeros(())
        target = code_labels[:, 1:, 0] != -100
        wanted = code_labels[:, 1:][target]
        is_code = codes[:, 1:][target]
        conditioning = self.code_embedding.embed_levels(is_code.clamp_min(0), self.get_input_embeddings())
        # The image end is predicted without any code to look at.
        conditioning = conditioning * (is_code[:, :1, None] >= 0)
        logits = self.visual_head(hidden[:, :-1][target], conditioning)
        loss = hidden.sum() * 0
        for level, level_logits in enumerate(logits):
            weight = 1.0 if level_weights is None else level_weights[level]
            loss = loss + weight * F.cross_entropy(level_logits.float(), wanted[:, level], reduction="sum")
        return loss, target.sum()

    def log_probs_and_entropy(self, stream: TokenStream, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every action under the distribution that ``sampling`` defines.

        The value at position ``t`` belongs to the action at ``t``, predicted from the hidden state at
        ``t - 1``. Memory for logits is bounded: positions are processed in chunks, recomputed backward.

        Returns:
            two ``[B, T, C]`` float32 tensors, 0 where ``stream.actions`` is False.

        Raises:
            ValueError: with a repetition penalty, whose distribution depends on the order of sampling.
        """
        if sampling.repetition_penalty != 1:
            raise ValueError("log-probabilities under a repetition penalty cannot be recomputed; set it to 1")
        hidden = self.hidden_states(stream)
        uncond = self._unconditional_hidden(stream) if sampling.guided else None
        logp = hidden.new_zeros(stream.actions.shape, dtype=torch.float32)
        entropy = torch.zeros_like(logp)
        rows, times = stream.actions[..., 0].nonzero(as_tuple=True)
        if len(rows):
            parts = self._text_likelihood(hidden[rows, times - 1], stream.text_ids[rows, times], sampling)
            index = (rows, times, torch.zeros_like(rows))
            logp, entropy = (x.index_put(index, y) for x, y in zip((logp, entropy), parts, strict=True))
        rows, times = stream.actions[..., 1].nonzero(as_tuple=True)
        if len(rows):
            other = None if uncond is None else uncond[rows, times - 1]
            parts = self._code_likelihood(hidden[rows, times - 1], other, stream.codes[rows, times], sampling)
            channels = torch.arange(1, 1 + stream.levels, device=rows.device)
            index = (rows[:, None], times[:, None], channels[None])
            logp, entropy = (x.index_put(index, y) for x, y in zip((logp, entropy), parts, strict=True))
        return logp, entropy

    def _text_likelihood(self, hidden: Tensor, ids: Tensor, sampling: SamplingParams) -> tuple[Tensor, ...]:
        def chunk(hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = sampling.shape_text(self.text_logits(hidden))
            return log_probs.gather(-1, ids[:, None])[:, 0], entropy_of(log_probs)

        rows = self.config.text_vocab_plus_multimodal_special_token_size
        return _in_chunks(chunk, rows, hidden, ids)

    def _code_likelihood(
        self, hidden: Tensor, uncond: Tensor | None, codes: Tensor, sampling: SamplingParams
    ) -> tuple[Tensor, ...]:
        def chunk(hidden: Tensor, uncond: Tensor | None, codes: Tensor) -> tuple[Tensor, Tensor]:
            conditioning = self.code_embedding.embed_levels(codes, self.get_input_embeddings())
            logits = self.visual_head(hidden, conditioning)
            if uncond is not None:
                pairs = zip(logits, self.visual_head(uncond, conditioning), strict=True)
                logits = [guide(c, u, sampling.guidance_scale) for c, u in pairs]
            logp, entropy = [], []
            for level, level_logits in enumerate(logits):
                log_probs = sampling.shape_codes(level_logits[:, :-1], level)
                logp.append(log_probs.gather(-1, codes[:, level, None])[:, 0])
                entropy.append(entropy_of(log_probs))
            return torch.stack(logp, 1), torch.stack(entropy, 1)

        return _in_chunks(chunk, sum(self.config.codebook_sizes), hidden, uncond, codes)

    def _unconditional_hidden(self, stream: TokenStream) -> Tensor:
        """Hidden states of the stream without its prompt (docs/format.md, engine form), back at their positions.

        The unconditional stream of a row runs from the last size tag before the drawn picture on.
        """
        parts, starts = [], []
        for row in range(stream.batch_size):
            drawn = stream.actions[row, :, 1].nonzero()
            first = int(drawn[0]) if len(drawn) else stream.length
            tags = (stream.text_ids[row, :first] == self.config.image_size_start_token_id).nonzero()
            start = int(tags[-1]) if len(tags) else 0
            starts.append(start)
            parts.append(stream.select([row]).after(start))
        hidden = self.hidden_states(TokenStream.collate(parts, self.config.pad_token_id or 0))
        rows = [F.pad(hidden[i], (0, 0, start, 0))[: stream.length] for i, start in enumerate(starts)]
        return pad_rows(rows, 0.0)


def _in_chunks(function: Any, classes: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Applies ``function`` to slices of the tensors' first axis and joins the results."""
    first = tensors[0]
    assert first is not None
    size = max(1, LIKELIHOOD_BUDGET // classes)
    if len(first) <= size:
        return function(*tensors)
    parts = []
    for start in range(0, len(first), size):
        piece = [None if t is None else t[start : start + size] for t in tensors]
        if torch.is_grad_enabled():
            parts.append(checkpoint(function, *piece, use_reentrant=False))
        else:
            parts.append(function(*piece))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


AutoConfig.register("dina", DinaConfig)
AutoModel.register(DinaConfig, DinaForConditionalGeneration)
AutoModelForCausalLM.register(DinaConfig, DinaForConditionalGeneration)
