from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dina.errors import DinaError
from dina.rl.checkpoints import MANIFEST, Checkpoints, find_checkpoint, is_whole, load_manifest_checked


def writer(content: str = "weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file({"w": torch.arange(100.0)}, folder / "model.safetensors")
        (folder / "visual_tokenizer").mkdir()
        (folder / "visual_tokenizer" / "config.json").write_text(content)

    return write


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=2)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_a_checkpoint_lists_all_its_files(checkpoints: Checkpoints) -> None:
    folder = checkpoints.save(3, writer())
    assert folder == checkpoints.folder / "step_3"
    manifest = load_manifest_checked(folder)
    assert manifest["step"] == 3
    assert set(manifest["files"]) == {"model.safetensors", "visual_tokenizer/config.json"}
    assert names(checkpoints) == ["step_3"]


def test_the_latest_stay_and_so_does_the_best(checkpoints: Checkpoints) -> None:
    for step, score in ((2, 0.1), (4, 0.9), (6, 0.3), (8, 0.2), (10, None)):
        checkpoints.save(step, writer(), score=score)
    assert checkpoints.steps() == [4, 8, 10]
    assert checkpoints.latest() == checkpoints.path(10)


def test_steps_are_ordered_as_numbers(checkpoints: Checkpoints) -> None:
    checkpoints.save(9, writer())
    checkpoints.save(10, writer())
    checkpoints.save(11, writer())
    assert checkpoints.steps() == [10, 11]


def test_going_back_behind_a_checkpoint_outdates_it(checkpoints: Checkpoints) -> None:
    for step in (10, 20):
        checkpoints.save(step, writer())
    checkpoints.save(15, writer())
    assert checkpoints.steps() == [10, 15]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", truncate, "bytes instead of"),
        ("model.safetensors", flip_a_bit, "checksum differs"),
        ("visual_tokenizer/config.json", Path.unlink, "is missing"),
        (MANIFEST, truncate, "manifest.json is missing or unreadable"),
        (MANIFEST, Path.unlink, "manifest.json is missing or unreadable"),
    ],
)
def test_damage_is_seen_and_the_one_before_is_offered(
    checkpoints: Checkpoints, name: str, damage: Callable[[Path], None], words: str
) -> None:
    checkpoints.save(1, writer())
    damage(checkpoints.save(2, writer()) / name)
    with pytest.raises(DinaError) as caught:
        checkpoints.latest()
    assert words in str(caught.value)
    assert f"Resume from {checkpoints.path(1)}, which is whole." in str(caught.value)
    assert is_whole(checkpoints.path(1)) and not is_whole(checkpoints.path(2))
    checkpoints.save(2, writer("again"))
    assert checkpoints.latest() == checkpoints.path(2)
    assert names(checkpoints) == ["step_1", "step_2"]


def test_all_damaged_and_none_at_all_are_errors(checkpoints: Checkpoints) -> None:
    with pytest.raises(DinaError, match="no checkpoint in"):
        checkpoints.latest()
    truncate(checkpoints.save(1, writer()) / "model.safetensors")
    with pytest.raises(DinaError, match="No earlier one is whole"):
        checkpoints.latest()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_earlier_checkpoints_intact(checkpoints: Checkpoints, error: Exception) -> None:
    checkpoints.save(1, writer())

    def fill_up(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise error

    with pytest.raises(DinaError, match=r"The disk is full: checkpoint step_2 .*untouched \(step_1\)"):
        checkpoints.save(2, fill_up)
    assert names(checkpoints) == ["step_1"]
    assert checkpoints.latest() == checkpoints.path(1)


def test_a_full_disk_while_replacing_keeps_the_old_one(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(1, writer("old"))

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DinaError, match="The disk is full"):
        checkpoints.save(1, writer("new"))
    assert (checkpoints.latest() / "visual_tokenizer" / "config.json").read_text() == "old"
    assert names(checkpoints) == ["step_1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bug")])
def test_an_interrupted_save_leaves_nothing(checkpoints: Checkpoints, error: BaseException) -> None:
    def stop(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise error

    with pytest.raises(type(error)):
        checkpoints.save(1, stop)
    assert names(checkpoints) == []


def test_what_a_killed_save_left_is_cleared_away(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, writer("one"))
    checkpoints.save(2, writer("two"))
    (checkpoints.folder / "step_3.tmp").mkdir()
    checkpoints.path(2).rename(checkpoints.folder / "step_2.old")
    assert checkpoints.steps() == [1]
    checkpoints.save(3, writer())
    assert names(checkpoints) == ["step_2", "step_3"]
    assert is_whole(checkpoints.path(2))


def test_resume_takes_a_run_or_a_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    first, second = checkpoints.save(1, writer()), checkpoints.save(2, writer())
    assert find_checkpoint(tmp_path / "run") == second
    assert find_checkpoint(first) == first
    with pytest.raises(DinaError, match="There is no folder"):
        find_checkpoint(tmp_path / "rnu")
    with pytest.raises(DinaError, match="neither a run's folder"):
        find_checkpoint(tmp_path)


def test_the_manifest_is_plain_json(checkpoints: Checkpoints) -> None:
    folder = checkpoints.save(1, writer(), score=0.5)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest) == {"step", "score", "files"}
    assert manifest["files"]["visual_tokenizer/config.json"]["bytes"] == len("weights")
