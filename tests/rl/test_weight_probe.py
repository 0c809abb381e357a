from __future__ import annotations

import torch

from dina.model.stream import TokenStream
from dina.rl.weight_probe import LONGEST, beginning


def stream(forced: set[int], prompt: int, length: int) -> TokenStream:
    """A prompt, then sampled patches with positions in between that the layout sets."""
    found = TokenStream.from_prompt(range(length), torch.full((length, 2), -1))
    for position in range(prompt, length):
        if position not in forced:
            found.actions[0, position, 1:] = True
    return found


def test_a_probe_ends_before_the_first_newline() -> None:
    found = beginning(stream({9, 14}, prompt=5, length=15))
    assert found.text_ids[0].tolist() == list(range(9))
    assert found.actions.shape == (1, 9, 3) and found.codes.shape == (1, 9, 2)


def test_a_probe_of_a_wide_picture_or_a_long_answer_is_cut() -> None:
    assert beginning(stream(set(), prompt=5, length=100)).length == 5 + LONGEST
    assert beginning(stream(set(), prompt=5, length=8)).length == 8
