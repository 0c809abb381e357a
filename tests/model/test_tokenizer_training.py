from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from pydantic import ValidationError

from dina.errors import DinaError
from dina.model import tokenizer_training
from dina.model.tokenizer_checkpoint import replace_folder
from dina.model.tokenizer_config import TokenizerRecipe
from dina.model.tokenizer_data import load_pictures
from dina.model.tokenizer_training import TokenizerTraining, run_tokenizer
from dina.model.visual_tokenizer import DinaVisualTokenizer

SOURCE = f"{__name__}:blocks"


def blocks(count: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures of two sizes with one flat block of colour."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        picture = np.full((16, 16 if index % 2 else 24, 3), 240, np.uint8)
        top, left = 4 * rng.integers(0, 3, 2)
        picture[top : top + 8, left : left + 8] = 60 * rng.integers(0, 4, 3)
        yield picture


def recipe(folder: Path, **changes: Any) -> TokenizerRecipe:
    fields = {
        "output_dir": str(folder),
        "threads": 1,
        "log_every": 1,
        "data": {"train": SOURCE, "train_count": 40, "eval_count": 10},
        "model": {
            "hidden_size": 16,
            "depth": 1,
            "num_heads": 2,
            "intermediate_size": 16,
            "window_size": 8,
            "out_hidden_size": 32,
            "vq_config": {"depth": 2, "codebook_size": 16, "codebook_dim": 8},
            "visual_decoder_config": {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32},
        },
        "tokenization": {
            "steps": 6,
            "batch_pictures": 8,
            "initialise_at": 2,
            "initialise_pictures": 20,
            "pixel_weight": 1.0,
        },
        "detokenization": {"steps": 4, "batch_pictures": 8, "edge_weight": 0.5},
    }
    return TokenizerRecipe(**{**fields, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return DinaVisualTokenizer.from_pretrained(folder / "final").state_dict()


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    figures = run_tokenizer(recipe(folder))
    assert figures["parameters"] < 30_000
    assert figures["pictures"] == 10
    return folder


def test_both_stages_learn(tmp_path: Path) -> None:
    long = recipe(tmp_path)
    long.tokenization.steps, long.detokenization.steps = 60, 60
    figures = run_tokenizer(long)
    records = lines(tmp_path)
    pixel = [r["pixel_loss"] for r in records if r["stage"] == "tokenization"]
    decoded = [r["l1_loss"] for r in records if r["stage"] == "detokenization"]
    assert np.mean(pixel[-5:]) < 0.5 * np.mean(pixel[:5])
    assert np.mean(decoded[-5:]) < 0.5 * np.mean(decoded[:5])
    assert figures["psnr"] > 12
    assert (tmp_path / "samples" / "reconstructions.png").exists()


@pytest.mark.parametrize("stop", [1, 4, 6, 8])
def test_interrupted_run_continues_with_the_same_numbers(
    whole_run: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step = TokenizerTraining._after_step
    steps = 0

    def press_ctrl_c(self: TokenizerTraining, *args: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            signal.raise_signal(signal.SIGINT)
        after_step(self, *args)

    monkeypatch.setattr(TokenizerTraining, "_after_step", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        run_tokenizer(recipe(tmp_path))
    monkeypatch.undo()
    run_tokenizer(recipe(tmp_path))
    expected, resumed = weights(whole_run), weights(tmp_path)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert lines(tmp_path) == lines(whole_run)


def test_stage_two_leaves_the_codes_alone(whole_run: Path, tmp_path: Path) -> None:
    other = recipe(tmp_path)
    other.detokenization.steps = 0
    run_tokenizer(other)
    expected, found = weights(whole_run), weights(tmp_path)
    for name in expected:
        same = torch.equal(expected[name], found[name])
        assert same != name.startswith("image_decoder."), name


def test_frozen_encoder_of_another_tokenizer_as_target(whole_run: Path, tmp_path: Path) -> None:
    other = recipe(tmp_path, init_from=str(whole_run / "final"))
    other.tokenization.semantic_target = str(whole_run / "final")
    other.tokenization.train_encoder = False
    run_tokenizer(other)
    expected, found = weights(whole_run), weights(tmp_path)
    name = "visual_model.patch_embed.proj.weight"
    assert torch.equal(expected[name], found[name])
    assert 0 < lines(tmp_path)[5]["semantic_loss"] < 2


def test_checkpoint_of_another_recipe(whole_run: Path) -> None:
    with pytest.raises(DinaError, match="seed"):
        run_tokenizer(recipe(whole_run, seed=3))


def test_damaged_checkpoint(tmp_path: Path) -> None:
    run_tokenizer(recipe(tmp_path))
    (tmp_path / "checkpoint" / "state.safetensors").write_bytes(b"short")
    with pytest.raises(DinaError, match="cannot be read"):
        run_tokenizer(recipe(tmp_path))


def test_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tokenizer_training.Tokenization, "forward", lambda *args: (torch.tensor(float("nan")), {})
    )
    with pytest.raises(DinaError, match="step 0"):
        run_tokenizer(recipe(tmp_path))


def test_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "final"
    replace_folder(target, lambda folder: (folder / "a").write_text("first"))

    def full_disk(folder: Path) -> None:
        (folder / "a").write_text("second")
        raise OSError(28, "No space left on device")

    with pytest.raises(DinaError, match="No space left"):
        replace_folder(target, full_disk)
    assert (target / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_unknown_words_name_the_nearest() -> None:
    with pytest.raises(ValidationError, match="window_size"):
        TokenizerRecipe(data={"train": SOURCE}, model={"windowsize": 8})
    with pytest.raises(ValidationError, match=r"model\.vq_config"):
        TokenizerRecipe(data={"train": SOURCE}, model={"vq_config": {"levels": 8}})
    with pytest.raises(ValidationError):
        TokenizerRecipe(data={"train": SOURCE, "shuffle": True})


def test_pictures_from_disk(tmp_path: Path) -> None:
    arrays = list(blocks(4, 0))
    names = []
    for index, array in enumerate(arrays):
        names.append(f"{index}.png")
        PILImage.fromarray(array).save(tmp_path / names[-1])
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    Dataset.from_dict({"image": [str(tmp_path / name) for name in names]}).cast_column(
        "image", Image()
    ).to_parquet(tmp_path / "rows" / "part.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).hardlink_to(tmp_path / name)
    for source in ("list.jsonl", "rows/part.parquet", "rows", "folder"):
        found = load_pictures(str(tmp_path / source), 10, 0, 8)
        assert len(found) == 4
        for picture, array in zip(found, arrays, strict=True):
            assert np.array_equal(picture.permute(1, 2, 0).numpy(), array)


def test_pictures_are_cropped_to_whole_tokens(tmp_path: Path) -> None:
    PILImage.fromarray(np.zeros((21, 30, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n')
    assert load_pictures(str(tmp_path / "list.jsonl"), 1, 0, 8)[0].shape == (3, 16, 24)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "neither"),
        ("nothing.here:attr", "cannot be imported"),
        (f"{__name__}:MISSING", "cannot be imported"),
    ],
)
def test_bad_sources(source: str, message: str) -> None:
    with pytest.raises(DinaError, match=message):
        load_pictures(source, 1, 0, 8)


def test_wrong_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"image": "missing.png"}\n')
    with pytest.raises(DinaError, match="line 1"):
        load_pictures(str(tmp_path / "list.jsonl"), 1, 0, 8)
