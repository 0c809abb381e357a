from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dina.errors import DinaError
from dina.model.checkpoint import load_checkpoint, save_checkpoint
from tests.tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    save_checkpoint(checkpoint, tmp_path)
    loaded = load_checkpoint(tmp_path)
    for part in ("model", "visual_tokenizer"):
        before, after = getattr(checkpoint, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
    assert loaded.processor.layout == checkpoint.processor.layout


def test_half_precision_halves_the_file_and_spares_the_codebooks(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    save_checkpoint(checkpoint, tmp_path / "whole")
    save_checkpoint(checkpoint, tmp_path / "half", torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    books = load_checkpoint(tmp_path / "half").visual_tokenizer.quantizer.quantize.state_dict()
    original = checkpoint.visual_tokenizer.quantizer.quantize.state_dict()
    assert all(torch.equal(books[k], original[k]) for k in original)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "visual_tokenizer/model.safetensors"]
)
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, harm: str) -> None:
    file = save_tiny_checkpoint(tmp_path) / name
    content = file.read_bytes()
    file.unlink()
    if harm == "cut":
        file.write_bytes(content[: len(content) // 3])
    with pytest.raises(DinaError, match=str(file.parent)):
        load_checkpoint(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DinaError, match="is not there"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(DinaError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)
