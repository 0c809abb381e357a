"""Checkpoint folders that are whole or not there: written aside, listed with checksums, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dina.errors import DinaError

MANIFEST = "manifest.json"
_PREFIX, _UNFINISHED, _REPLACED = "step_", ".tmp", ".old"


class Checkpoints:
    """The checkpoints of a run, ``step_<n>`` below one folder.

    Args:
        folder: created when the first checkpoint is saved.
        keep: how many of the latest stay; the one with the best score stays besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Lets ``write`` fill a folder, and makes it checkpoint ``step`` once all of it is on disk.

        Args:
            write: called with an empty folder.
            score: of this checkpoint, higher is better; the best scored one is never removed.

        Raises:
            DinaError: the disk is full. Earlier checkpoints stay as they are, and nothing half-written is left.
        """
        target = self.path(step)
        unfinished = target.with_name(target.name + _UNFINISHED)
        try:
            self._clear_leftovers()
            unfinished.mkdir(parents=True)
            write(unfinished)
            _write_manifest(unfinished, step, score)
            _move_into_place(unfinished, target)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if _disk_is_full(error):
                raise DinaError(self._no_space(step)) from error
            raise
        self._remove_surplus(step)
        return target

    def path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step}"

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending, damaged ones included."""
        names = [path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self) -> Path:
        """The newest checkpoint, verified.

        Raises:
            DinaError: there is none, or it is damaged; then names the newest one that is whole.
        """
        steps = self.steps()
        if not steps:
            raise DinaError(f"There is no checkpoint in {self.folder}; the run stopped before its first one")
        newest = self.path(steps[-1])
        try:
            load_manifest_checked(newest)
        except DinaError as damage:
            whole = next(
                (self.path(step) for step in reversed(steps[:-1]) if is_whole(self.path(step))), None
            )
            offer = f"Resume from {whole}, which is whole." if whole else "No earlier one is whole."
            raise DinaError(f"{damage} {offer}") from None
        return newest

    def _clear_leftovers(self) -> None:
        """Removes what a killed save left, and takes back a checkpoint that it was about to replace."""
        for path in self.folder.glob(f"{_PREFIX}*{_UNFINISHED}"):
            shutil.rmtree(path)
        for path in self.folder.glob(f"{_PREFIX}*{_REPLACED}"):
            original = path.with_name(path.name.removesuffix(_REPLACED))
            if original.exists():
                shutil.rmtree(path)
            else:
                path.rename(original)

    def _remove_surplus(self, saved: int) -> None:
        """Removes old checkpoints, and later ones: the run has gone back behind them, so they are outdated."""
        for step in self.steps():
            if step > saved:
                shutil.rmtree(self.path(step))
        best = self._best()
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(self.path(step))

    def _best(self) -> int | None:
        scores: list[tuple[float, int]] = []
        for step in self.steps():
            score = _read_manifest(self.path(step)).get("score")
            if isinstance(score, int | float):
                scores.append((score, step))
        return max(scores)[1] if scores else None

    def _no_space(self, step: int) -> str:
        kept = ", ".join(f"{_PREFIX}{n}" for n in self.steps()) or "none yet"
        return (
            f"The disk is full: checkpoint {_PREFIX}{step} could not be written to {self.folder}. Earlier checkpoints "
            f"are untouched ({kept}). Free some space, then resume the run; run.save_total_limit keeps fewer."
        )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``--resume`` names: a checkpoint folder itself, or the latest one of a run's folder.

    Raises:
        DinaError: neither of the two, or damaged.
    """
    if (path / MANIFEST).is_file():
        load_manifest_checked(path)
        return path
    if (path / "checkpoints").is_dir():
        return Checkpoints(path / "checkpoints").latest()
    if not path.is_dir():
        raise DinaError(f"There is no folder {path} to resume from")
    raise DinaError(
        f"{path} is neither a run's folder (it has no checkpoints/) nor a checkpoint (no {MANIFEST})"
    )


def load_manifest_checked(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's manifest after comparing every file with it.

    Raises:
        DinaError: the manifest or a file is missing, cut short, or differs from what was written.
    """
    manifest = _read_manifest(folder)
    if not isinstance(manifest.get("files"), dict):
        raise DinaError(f"Checkpoint {folder} is damaged: {MANIFEST} is missing or unreadable.")
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise DinaError(f"Checkpoint {folder} is damaged: {name} is missing.")
        if (size := file.stat().st_size) != entry["bytes"]:
            raise DinaError(
                f"Checkpoint {folder} is damaged: {name} has {size} bytes instead of {entry['bytes']}."
            )
        if _sha256(file) != entry["sha256"]:
            raise DinaError(
                f"Checkpoint {folder} is damaged: {name} is not what was written (its checksum differs)."
            )
    return manifest


def is_whole(folder: Path) -> bool:
    try:
        load_manifest_checked(folder)
    except DinaError:
        return False
    return True


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _write_manifest(folder: Path, step: int, score: float | None) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }
    manifest = folder / MANIFEST
    manifest.write_text(
        json.dumps({"step": step, "score": score, "files": entries}, indent=1), encoding="utf-8"
    )
    for path in [*files, manifest]:
        _flush_to_disk(path)
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush_to_disk(path)


def _move_into_place(unfinished: Path, target: Path) -> None:
    replaced = target.with_name(target.name + _REPLACED)
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    _flush_to_disk(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors reports the operating system's error in words only.
    return f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error)
