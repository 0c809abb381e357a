from __future__ import annotations

import pytest

from dina.model.layout import ImageLayout
from tests.golden import load_golden

LAYOUT = ImageLayout(start=131106, end=131107, pad=131108, newline=131109, size_start=131090, size_end=131091)


@pytest.mark.parametrize(("height", "width"), [(2, 3), (1, 1), (4, 5)])
def test_layout_matches_the_reference(height: int, width: int) -> None:
    tensors, metadata = load_golden("image_layout")
    name = f"h{height}_w{width}"
    drawn = LAYOUT.drawn_ids(height, width)
    assert [*drawn, metadata["special_ids"]["eos"]] == tensors[f"out.gen_ids.{name}"].tolist()
    assert LAYOUT.input_ids(height, width) == tensors[f"out.und_ids.{name}"].tolist()
    pads = [i for i, token in enumerate(drawn) if token == LAYOUT.pad]
    assert pads == tensors[f"out.gen_pad_index.{name}"].tolist()
    assert [i - 1 for i in pads] == tensors[f"out.gen_hidden_index.{name}"].tolist()
    newlines = [i for i, token in enumerate(drawn) if token == LAYOUT.newline]
    assert newlines == tensors[f"out.gen_newline_index.{name}"].tolist()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (37, 37)])
def test_steps_spell_the_layout(height: int, width: int) -> None:
    drawn = LAYOUT.drawn_ids(height, width)
    assert [LAYOUT.drawn_step(step, height, width) for step in range(len(drawn) - 1)] == drawn[1:]
    assert drawn.count(LAYOUT.pad) == height * width
    assert drawn.count(LAYOUT.newline) == height - 1
