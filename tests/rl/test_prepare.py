from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dina.errors import DinaError
from dina.rl.data import load_prompts
from dina.rl.prepare.config import PrepareRecipe
from dina.rl.prepare.duplicates import Fingerprint, find_copies
from dina.rl.prepare.prepare import prepare
from dina.rl.prepare.report import judge_scores
from dina.rl.prepare.row_log import RowLog
from dina.rollout.protocol import Prompt
from tests.rl.planted import Planted, dropped_rows, plant, recipe, worth_training, write_jsonl


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    return plant(worth_training(24, folder / "search"), folder, copies=9, unanswerable=6)


@pytest.fixture(scope="module")
def whole(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "whole"
    prepare(recipe(planted, out))
    return out


def test_exactly_the_planted_rows_go(planted: Planted, whole: Path) -> None:
    assert dropped_rows(whole) == {"duplicate": planted.copies, "all_wrong": planted.unanswerable}
    report = json.loads((whole / "report.json").read_text())
    assert (report["rows"], report["kept"], report["duplicate"], report["all_wrong"]) == (39, 24, 9, 6)
    rates = report["pass_rates"]
    assert rates["0/4"] == 6 and rates["4/4"] == 0 and sum(rates.values()) == 30


def test_what_is_kept_can_be_trained_on_and_says_where_it_comes_from(planted: Planted, whole: Path) -> None:
    prompts = load_prompts(whole / "prepared.parquet")  # no renderer: the pictures are inside
    assert len(prompts) == 24
    for prompt in prompts:
        assert prompt.task == "vqa" and prompt.image is not None
        assert prompt.columns["pass_rate"] in (0.25, 0.5, 0.75)
        provenance = prompt.columns["provenance"]
        assert provenance["source"] == "plain" and len(provenance["image_hash"]) == 16
        source = planted.files["plain"].read_text().splitlines()[provenance["row"] - 1]
        assert json.loads(source)["prompt"] == prompt.text


def test_jsonl_holds_the_same_rows(planted: Planted, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "jsonl"
    out.mkdir()
    text = (whole / "config.yaml").read_text().replace(str(whole), str(out)).replace("parquet", "jsonl")
    (out / "config.yaml").write_text(text)
    for name in ("rows.jsonl", "rollouts.jsonl"):
        (out / name).write_bytes((whole / name).read_bytes())
    prepare(recipe(planted, out, format="jsonl"), opener=lambda: pytest.fail("all rollouts are there"))
    first, second = load_prompts(whole / "prepared.parquet"), load_prompts(out / "prepared.jsonl")
    for a, b in zip(first, second, strict=True):
        assert (a.id, a.text, a.columns["answer"]) == (b.id, b.text, b.columns["answer"])
        assert np.array_equal(a.image, b.image)


def test_a_killed_run_goes_on_and_loses_nothing(planted: Planted, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fields = recipe(planted, out, rollout={"batch_size": 8, "max_completion_length": 16}).model_dump(
        mode="json"
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    program = [sys.executable, "-m", "dina.rl.cli", "prepare", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)
    log = out / "rollouts.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") >= 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = log.read_text()
    assert before.count("\n") < 30, "it was to be killed half-way"
    with log.open("a") as file:
        file.write('{"source": "plain", "ro')  # what a kill in the middle of a write leaves
    prepare(PrepareRecipe.model_validate(fields))
    after = log.read_text()
    assert after.startswith(before) and after.count("\n") == 30
    assert (out / "dropped.jsonl").read_text() == (whole / "dropped.jsonl").read_text()
    rows = [
        [(p.id, p.text, p.columns["pass_rate"]) for p in load_prompts(folder / "prepared.parquet")]
        for folder in (whole, out)
    ]
    assert rows[0] == rows[1]


def test_another_recipe_does_not_go_on_in_the_same_folder(planted: Planted, whole: Path) -> None:
    with pytest.raises(DinaError, match="begun with another recipe"):
        prepare(recipe(planted, whole, seed=1))


def test_a_wrong_row_is_named_or_counted(planted: Planted, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in planted.files["plain"].read_text().splitlines()[:3]]
    rows[1] |= {"scene": None, "image": "gone.png"}
    files = Planted({"broken": write_jsonl(tmp_path / "broken.jsonl", rows)}, set(), set())
    with pytest.raises(DinaError, match=r"broken.jsonl:2: image: cannot be read.*gone.png.*skip_invalid"):
        prepare(recipe(files, tmp_path / "strict"))
    report = prepare(recipe(files, tmp_path / "lenient", skip_invalid=True))
    assert (report.count("invalid"), report.count("kept")) == (1, 2)


def test_a_row_that_no_reward_can_score_is_left_out(planted: Planted, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in planted.files["plain"].read_text().splitlines()[:3]]
    del rows[0]["answer"]
    files = Planted({"plain": write_jsonl(tmp_path / "plain.jsonl", rows)}, set(), set())
    report = prepare(recipe(files, tmp_path / "out"))
    assert (report.count("unscored"), report.count("kept")) == (1, 2)


@pytest.mark.parametrize(
    ("scores", "outcome", "pass_rate"),
    [
        ([1.0, 0.0, 0.0, 0.0], "kept", 0.25),
        ([1.0, 1.0], "all_right", 1.0),
        ([0.0, 0.0], "all_wrong", 0.0),
        ([0.4, 0.6], "kept", 0.5),  # graded: neither all right nor all wrong
        ([1.0, None], "unscored", None),
    ],
)
def test_verdicts(scores: list[float | None], outcome: str, pass_rate: float | None) -> None:
    verdict = judge_scores(scores, right=1.0, wrong=0.0)
    assert verdict.outcome == outcome and verdict.pass_rate == pytest.approx(pass_rate)


def fingerprint(image: np.ndarray, text: str = "how many?", answer: Any = "two") -> Fingerprint:
    return Fingerprint.of(Prompt("x", text, "vqa", image=image, columns={"answer": answer}))


def disc(color: tuple[int, int, int], x: int = 32, size: int = 64) -> np.ndarray:
    yy, xx = np.mgrid[:size, :size] * 64 / size
    image = np.full((size, size, 3), 240, np.uint8)
    image[(xx - x) ** 2 + (yy - 32) ** 2 < 100] = color
    return image


def test_copies_are_found_through_scaling_and_not_through_colour_or_place() -> None:
    red, scaled = disc((210, 30, 40)), np.array(Image.fromarray(disc((210, 30, 40))).resize((128, 128)))
    blue, moved = disc((30, 30, 210)), disc((210, 30, 40), x=24)
    rows = [fingerprint(image) for image in (red, scaled, blue, moved)]
    assert rows[0].image_hash == rows[2].image_hash  # pHash sees no colour
    assert find_copies(rows).original == [None, 0, None, None]
    assert find_copies(rows, image_distance=None).original == [None] * 4


def test_other_questions_and_other_answers_are_no_copies() -> None:
    red = disc((210, 30, 40))
    rows = [
        fingerprint(red),
        fingerprint(red, "How  MANY?"),
        fingerprint(red, "which?"),
        fingerprint(red, answer="three"),
        fingerprint(red, answer=["Two"]),
    ]
    copies = find_copies(rows)
    assert copies.original == [None, 0, None, None, 0]
    assert copies.disputed == [3]


def test_drawing_prompts_are_compared_by_their_words() -> None:
    rows = [Fingerprint.of(Prompt(str(i), text)) for i, text in enumerate(["a star", "A star ", "a ring"])]
    assert find_copies(rows).original == [None, 0, None]


def test_a_log_cuts_off_a_half_written_line_and_names_a_damaged_one(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "log")
    assert list(log) == []
    log.append([{"a": 1}, {"b": "ü"}])
    with (tmp_path / "log").open("a") as file:
        file.write('{"c"')
    assert list(RowLog(tmp_path / "log")) == [{"a": 1}, {"b": "ü"}]
    (tmp_path / "log").write_text("nonsense\n")
    with pytest.raises(DinaError, match="log:1 is damaged"):
        list(RowLog(tmp_path / "log"))


def test_recipes_that_mean_nothing_are_refused() -> None:
    fields: dict[str, Any] = {"model": {"path": "x"}, "rewards": [{"use": "vqa"}]}
    two = [{"path": "a/x.jsonl"}, {"path": "b/x.jsonl"}]
    with pytest.raises(ValueError, match="two sources are called 'x'"):
        PrepareRecipe.model_validate(fields | {"sources": two})
    with pytest.raises(ValueError, match=r"wrong 1.0 must be below right 0.5"):
        PrepareRecipe.model_validate(fields | {"sources": two[:1], "right": 0.5, "wrong": 1.0})
