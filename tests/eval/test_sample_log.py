from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dina.eval.growing import GrowingFile
from dina.eval.sample_log import (
    DropRecord,
    SampleIndex,
    SampleRecord,
    ScoreRecord,
    WorstRecord,
    append_records,
    picture_path,
)


def record(
    step: int, row: int, reward: float | None = 0.5, difference: float | None = 0.0, **more
) -> SampleRecord:
    worst = WorstRecord(difference, 0.5, 0.5, "level_0", 7, 1, 2)
    return SampleRecord(step, row, f"p{row}", "a red star", reward=reward, worst=worst, **more)


DROPPED = {"drops": [DropRecord("mismatch", 0.9, 0.1)]}
FAILED = {"scores": {"ocr": ScoreRecord(None, "no engine", failed=True)}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    append_records(
        tmp_path,
        [
            record(1, 0, 0.9, picture=picture_path(1, 0)),
            record(1, 1, 0.1, 0.4, **DROPPED),
            record(2, 0, None, 0.2, **FAILED),
            record(2, 5, 0.3, None, picture=picture_path(2, 5)),
        ],
        {picture_path(1, 0): np.zeros((4, 4, 3), dtype=np.uint8)},
    )
    return tmp_path


def index_of(run: Path) -> SampleIndex:
    index = SampleIndex(run)
    assert index.refresh()
    return index


def rows(index: SampleIndex, **how) -> list[tuple[int, int]]:
    return [(r.step, r.row) for r in index.read(index.select(**how))]


def test_samples_are_found_by_order_and_verdict(run: Path) -> None:
    index = index_of(run)
    assert rows(index) == [(2, 5), (2, 0), (1, 0), (1, 1)]
    assert rows(index, order="reward") == [(1, 1), (2, 5), (1, 0), (2, 0)]
    # A difference that is no number is the worst of all.
    assert rows(index, order="difference") == [(2, 5), (1, 1), (2, 0), (1, 0)]
    assert rows(index, only="dropped") == [(1, 1)]
    assert rows(index, only="failed") == [(2, 0)]
    assert rows(index, only="kept") == [(2, 5), (1, 0)]
    assert rows(index, steps=(1, 1)) == [(1, 0), (1, 1)]
    assert rows(index, pictures=True) == [(2, 5), (1, 0)]
    assert index.steps().tolist() == [1, 2]


def test_a_record_comes_back_whole(run: Path) -> None:
    made = record(9, 3, grid=(2, 3), answer="so", **DROPPED, **FAILED)
    append_records(run, [made])
    index = index_of(run)
    assert index.read(index.select(steps=(9, 9))) == [made]


def test_new_records_are_read_on_and_half_a_line_waits(run: Path) -> None:
    index = index_of(run)
    file = run / "samples" / "samples.jsonl"
    line = file.read_text().splitlines()[0].replace('"step": 1', '"step": 3') + "\n"
    with file.open("a") as out:
        out.write(line[:40])
    assert index.refresh() and len(index) == 4
    with file.open("a") as out:
        out.write(line[40:] + "no json\n" + '{"step": 4}\n')
    assert index.refresh() and len(index) == 5
    assert rows(index)[0] == (3, 0)


def test_a_file_that_was_cut_is_read_anew(run: Path) -> None:
    index = index_of(run)
    file = run / "samples" / "samples.jsonl"
    first = file.read_text().splitlines(keepends=True)[:1]
    aside = run / "aside"
    aside.write_text("".join(first))
    aside.replace(file)
    assert index.refresh() and rows(index) == [(1, 0)]
    append_records(run, [record(2, 7)])
    assert index.refresh() and rows(index) == [(2, 7), (1, 0)]


def test_an_unknown_key_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    append_records(tmp_path, [record(1, 0)])
    file = tmp_path / "samples" / "samples.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mood": "good"}) + "\n")
    index = index_of(tmp_path)
    assert index.read(index.select()) == [record(1, 0)]


def test_no_samples_are_no_error(tmp_path: Path) -> None:
    index = index_of(tmp_path)
    assert len(index) == 0 and index.read(index.select()) == [] and index.steps().size == 0


@pytest.mark.parametrize(
    "path",
    [
        "../config.yaml",
        "step_000001/../../config.yaml",
        "/etc/passwd",
        "samples.jsonl",
        "step_000001/000.png/..",
        "step_1/000.png",
        "step_000001/000.jpg",
        "step_000001/000.png\n",
        None,
    ],
)
def test_only_pictures_of_samples_are_pictures(run: Path, path: str | None) -> None:
    (run / "config.yaml").write_text("secret: 1")
    assert index_of(run).picture_file(path) is None


def test_a_link_that_leads_out_is_no_picture(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "000.png").write_bytes((run / "samples" / picture_path(1, 0)).read_bytes())
    (run / "samples" / "step_000007").symlink_to(outside)
    (run / "samples" / "step_000001" / "009.png").symlink_to(outside / "000.png")
    index = index_of(run)
    assert index.picture_file(picture_path(1, 0)) is not None
    assert index.picture_file("step_000007/000.png") is None
    assert index.picture_file(picture_path(1, 9)) is None


def test_a_line_longer_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"a" * 100 + b"\nb\n" + b"c" * 50)
    growing = GrowingFile(file)
    assert [line for _, line in growing.read(10)] == [b"a" * 100]
    assert growing.read(10) == [(101, b"b")]
    assert growing.read(10) == []
    with file.open("ab") as out:
        out.write(b"\n")
    assert growing.read(10) == [(103, b"c" * 50)]
