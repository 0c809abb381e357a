"""Where the tokens of a picture stand in the stream (docs/format.md)."""

from __future__ import annotations

from dataclasses import dataclass

from dina.model.config import DinaConfig


@dataclass(frozen=True)
class ImageLayout:
    """The special ids of pictures, and the token sequences they form. Grids are (rows, columns) of tokens."""

    start: int
    end: int
    pad: int
    newline: int
    size_start: int
    size_end: int

    @classmethod
    def of(cls, config: DinaConfig) -> ImageLayout:
        return cls(
            config.image_start_token_id,
            config.image_end_token_id,
            config.image_pad_token_id,
            config.image_newline_token_id,
            config.image_size_start_token_id,
            config.image_size_end_token_id,
        )

    def input_ids(self, height: int, width: int) -> list[int]:
        """A picture to understand: start, ``height * width`` pads, end. No newlines, no size tag."""
        return [self.start, *[self.pad] * (height * width), self.end]

    def drawn_ids(self, height: int, width: int) -> list[int]:
        """A drawn picture from start to end: rows of pads with a newline between rows."""
        ids = [self.start]
        for row in range(height):
            ids += [self.newline] if row else []
            ids += [self.pad] * width
        return [*ids, self.end]

    def drawn_step(self, step: int, height: int, width: int) -> int:
        """The token at ``step`` (0 = the first after start) of a drawn picture."""
        if step == height * (width + 1) - 1:
            return self.end
        return self.newline if (step + 1) % (width + 1) == 0 else self.pad
