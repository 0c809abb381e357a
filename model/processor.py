"""Between messages and token streams: the chat format of LongCat-Next (docs/format.md) with pictures as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from dina.errors import DinaError
from dina.model.layout import ImageLayout
from dina.model.stream import TokenStream

EOS = "</longcat_s>"
IMAGE_TOKENS = {
    "start": "<longcat_img_start>",
    "end": "<longcat_img_end>",
    "pad": "<longcat_img_pad>",
    "newline": "<longcat_img_newline>",
    "size_start": "<longcat_img_token_size>",
    "size_end": "</longcat_img_token_size>",
}
ROLE_TOKENS = {role: f"<longcat_{role}>" for role in ("system", "user", "assistant")}
NO_LOSS = -100

CHAT_TEMPLATE = """{%- for message in messages -%}
<longcat_{{ message.role }}>
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}
{%- if part.type == 'text' %}{{ part.text }}
{%- elif message.role == 'assistant' %}<longcat_img_token_size>{{ part.size[0] }} {{ part.size[1] -}}
</longcat_img_token_size><longcat_img_start><longcat_img_end>
{%- else %}<longcat_img_start><longcat_img_end>{% endif %}{% endfor %}{% endif %}
{%- if message.role == 'assistant' %}</longcat_s>{% endif %}
{%- endfor -%}
{%- if add_generation_prompt %}<longcat_assistant>{% endif %}"""


@dataclass
class Encoding:
    """One tokenised conversation with its targets.

    Attributes:
        text_ids: ``[T]``. codes: ``[T, L]``, -1 where none.
        labels: ``[T]`` text targets aligned with ``text_ids``, -100 where there is no loss.
        code_labels: ``[T, L]`` code targets, -100 where there is no loss; the extra class of every level at
            the end of a drawn picture.
    """

    text_ids: Tensor
    codes: Tensor
    labels: Tensor
    code_labels: Tensor

    @property
    def stream(self) -> TokenStream:
        return TokenStream.from_prompt(self.text_ids.tolist(), self.codes)


class DinaProcessor(ProcessorMixin):
    """Text tokenizer, image layout and chat format.

    Text from users is tokenised with special tokens switched off, so no prompt can forge a role or a picture.

    Args:
        tokenizer: must know the special tokens of ``IMAGE_TOKENS`` and ``ROLE_TOKENS``.
        codebook_sizes: of the ``L`` code levels.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        codebook_sizes: Sequence[int] = (),
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.codebook_sizes = list(codebook_sizes)
        ids = {name: self._special(token) for name, token in IMAGE_TOKENS.items()}
        self.layout = ImageLayout(**ids)
        self.roles = {role: self._special(token) for role, token in ROLE_TOKENS.items()}
        self.eos = self._special(EOS)

    @property
    def levels(self) -> int:
        return len(self.codebook_sizes)

    def _special(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if index is None or index == self.tokenizer.unk_token_id:
            raise DinaError(
                f"the text tokenizer has no special token {token}; add it before building the processor"
            )
        return index

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; what looks like a special token stays text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def size_tag(self, grid: tuple[int, int]) -> list[int]:
        """The ids that announce a drawn picture of ``grid`` = (rows, columns) tokens."""
        return [self.layout.size_start, *self.encode_text(f"{grid[0]} {grid[1]}"), self.layout.size_end]

    def encode(
        self,
        messages: Sequence[dict[str, Any]],
        draw: tuple[int, int] | None = None,
        add_generation_prompt: bool = False,
    ) -> Encoding:
        """Tokenises a conversation.

        Args:
            messages: ``{"role", "content"}``; content is a string or a list of ``{"type": "text", "text"}``
                and ``{"type": "image", "codes": [h, w, L]}``. A picture of the assistant is a drawing.
            draw: end with the prompt for a drawing of this grid.
            add_generation_prompt: end with the prompt for an answer.
        """
        row = _RowBuilder(self)
        for message in messages:
            row.message(message)
        if add_generation_prompt or draw:
            row.text([self.roles["assistant"]])
        if draw:
            row.text([*self.size_tag(draw), self.layout.start])
        return row.build()

    def drawing_prompt(self, text: str, grid: tuple[int, int]) -> TokenStream:
        """The prompt that makes the model draw ``text`` on ``grid`` = (rows, columns) tokens."""
        return self.encode([{"role": "user", "content": text}], draw=grid).stream

    def question_prompt(self, question: str, codes: Tensor) -> TokenStream:
        """The prompt that makes the model answer ``question`` about the picture ``codes`` ``[h, w, L]``."""
        content = [{"type": "image", "codes": codes}, {"type": "text", "text": question}]
        return self.encode([{"role": "user", "content": content}], add_generation_prompt=True).stream

    def decode_text(self, ids: Sequence[int] | Tensor) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def drawn_codes(self, stream: TokenStream) -> Tensor | None:
        """``[h, w, L]`` codes of the last picture drawn in a single-row stream, ``None`` without one."""
        ids = stream.text_ids[0]
        starts = (ids == self.layout.start).nonzero()
        if not len(starts):
            return None
        first = int(starts[-1]) + 1
        ends = (ids[first:] == self.layout.end).nonzero()
        if not len(ends):
            return None
        span = slice(first, first + int(ends[0]))
        height = 1 + int((ids[span] == self.layout.newline).sum())
        codes = stream.codes[0, span]
        return codes[codes[:, 0] >= 0].unflatten(0, (height, -1))


class _RowBuilder:
    """Collects the positions of one conversation."""

    def __init__(self, processor: DinaProcessor) -> None:
        self.p = processor
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.codes: list[Tensor] = []
        self.code_labels: list[Tensor] = []

    def message(self, message: dict[str, Any]) -> None:
        role, content = message["role"], message["content"]
        if role not in self.p.roles:
            raise DinaError(f"unknown role {role!r}; roles are {', '.join(self.p.roles)}")
        spoken = role == "assistant"
        self.text([self.p.roles[role]])
        parts: list[dict[str, Any]] = (
            content if isinstance(content, list) else [{"type": "text", "text": content}]
        )
        for part in parts:
            if part["type"] == "text":
                self.text(self.p.encode_text(part["text"]), learn=spoken)
            elif spoken:
                self.drawing(part["codes"])
            else:
                self.picture(part["codes"])
        if spoken:
            self.text([self.p.eos], learn=True)

    def text(self, ids: Sequence[int], learn: bool = False) -> None:
        empty = torch.full((len(ids), self.p.levels), -1)
        self._add(ids, ids if learn else [NO_LOSS] * len(ids), empty, empty.new_full(empty.shape, NO_LOSS))

    def picture(self, codes: Tensor) -> None:
        ids = self.p.layout.input_ids(*codes.shape[:2])
        self._image(ids, codes, learn=False)

    def drawing(self, codes: Tensor) -> None:
        grid = (codes.shape[0], codes.shape[1])
        self.text(self.p.size_tag(grid))
        self._image(self.p.layout.drawn_ids(*grid), codes, learn=True)

    def _image(self, ids: list[int], codes: Tensor, learn: bool) -> None:
        is_pad = torch.tensor(ids) == self.p.layout.pad
        placed = torch.full((len(ids), self.p.levels), -1)
        placed[is_pad] = codes.flatten(0, 1).to(placed)
        targets = torch.full_like(placed, NO_LOSS)
        if learn:
            targets[is_pad] = placed[is_pad]
            targets[-1] = torch.tensor(self.p.codebook_sizes)
        self._add(ids, [NO_LOSS] * len(ids), placed, targets)

    def _add(self, ids: Sequence[int], labels: Sequence[int], codes: Tensor, code_labels: Tensor) -> None:
        self.ids += ids
        self.labels += labels
        self.codes.append(codes)
        self.code_labels.append(code_labels)

    def build(self) -> Encoding:
        return Encoding(
            torch.tensor(self.ids),
            torch.cat(self.codes),
            torch.tensor(self.labels),
            torch.cat(self.code_labels),
        )
