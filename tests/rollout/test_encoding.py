from __future__ import annotations

import numpy as np
import pytest

from dina.rollout.encoding import fitted


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 96), (64, 96)), ((60, 99), (64, 96)), ((3, 13), (8, 16)), ((67, 68), (64, 72))],
)
def test_pictures_of_any_size_are_brought_to_whole_tokens(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    picture = np.full((*size, 3), (200, 10, 20), np.uint8)
    out = fitted(picture, 8)
    assert out.shape == (*expected, 3) and out.dtype == np.uint8
    assert np.abs(out.astype(int) - (200, 10, 20)).max() <= 1
    assert (out is picture) == (size == expected)
