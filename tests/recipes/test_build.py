"""The committed prompt files are what the builder writes; SFT data are reproducible and load as a data set."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from dina.errors import DinaError
from dina.recipes.scenes.build import (
    PROMPTS,
    corpus,
    prompt_files,
    sft_rows,
    to_jsonl,
    write_prompts,
    write_sft,
)
from dina.recipes.scenes.descriptions import REQUESTS
from dina.recipes.scenes.facts import FactsReward, facts_f1, read_claims
from dina.recipes.scenes.splits import held_out_described, held_out_scenes, scene_key
from dina.recipes.scenes.world import render_json, scene_from_json
from dina.rewards.answers import final_answer
from dina.rewards.registry import find_reward


def test_committed_prompt_files_are_what_the_builder_writes(tmp_path):
    write_prompts(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in PROMPTS.glob("*.jsonl")}
    assert written.keys() == committed.keys()
    for name, data in written.items():
        assert data == committed[name], f"{name} differs: run python -m dina.recipes.scenes.build"
    assert sum(map(len, written.values())) < 3e6


def test_rows_have_the_columns_that_rewards_need():
    for name, rows in prompt_files().items():
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert row["task"] == ("vqa" if name.startswith(("vqa", "descriptions")) else "t2i")
            if row["tag"] == "description":
                assert (
                    facts_f1(row["answer"], row["answer"]) == 1.0
                    and find_reward(row["metric"]) is FactsReward
                )
                assert len(read_claims(row["answer"])) == len(row["scene"]["objects"])
                continue
            height, width = row["grid"]
            if row["task"] == "vqa":
                assert render_json(row["scene"]).shape == (8 * height, 8 * width, 3)
                assert row["answer"] and " " not in row["answer"]
            elif row["tag"] == "text_rendering":
                assert f'"{row["text"][0]}"' in row["prompt"] and "include" not in row
            else:
                assert row["include"] and all(clause["class"] in row["prompt"] for clause in row["include"])
    assert json.loads(to_jsonl(rows).splitlines()[0]) == rows[0]


def test_sft_rows_depend_on_seed_and_number_alone():
    rows = list(sft_rows(30, seed=3))
    assert list(sft_rows(10, seed=3, start=20)) == rows[20:]
    assert list(sft_rows(30, seed=4)) != rows


def test_sft_data_load_as_a_dataset(tmp_path):
    from datasets import load_dataset

    write_sft(tmp_path / "sft", 40, seed=1)
    data = load_dataset(str(tmp_path / "sft"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["task", "tag", "prompt", "answer", "scene", "grid", "image"]
    assert len(data) == 40
    for row, expected in zip(data, sft_rows(40, seed=1), strict=True):
        picture = np.asarray(row["image"].convert("RGB"))
        assert (picture == render_json(json.loads(row["scene"]))).all()
        assert (picture == np.asarray(Image.open(io.BytesIO(expected["image"]["bytes"])))).all()
        assert row["prompt"] == expected["prompt"]
    with pytest.raises(DinaError, match="already holds Parquet files"):
        write_sft(tmp_path / "sft", 1, seed=1)


@pytest.mark.parametrize("mixture, share", [("describing", 0.4), ("reasoning", 0.2)])
def test_the_stages_that_teach_to_describe_show_no_held_out_picture(mixture: str, share: float):
    rows = list(sft_rows(300, seed=5, mixture=mixture))
    asked = [row for row in rows if row["task"] == "vqa"]
    described = [row for row in asked if row["prompt"] in REQUESTS]
    assert 0.6 < len(asked) / len(rows) < 0.9 and abs(len(described) / len(asked) - share) < 0.1
    shown = {scene_key(scene_from_json(json.loads(row["scene"]))) for row in rows}
    assert shown.isdisjoint(held_out_described() | held_out_scenes())


@pytest.mark.parametrize("mixture, least, most", [("describing", 3.0, 3.0), ("reasoning", 1.7, 2.1)])
def test_what_a_description_says_of_each_object(mixture: str, least: float, most: float):
    """Shape, colour and place; while rewards are to teach completeness, colours and places are left out."""
    facts = []
    for row in sft_rows(300, seed=5, mixture=mixture):
        if row["task"] == "vqa" and row["prompt"] in REQUESTS:
            claims = read_claims(row["answer"])
            assert len(claims) == len(json.loads(row["scene"])["objects"])
            facts += [claim.facts for claim in claims]
    assert least <= np.mean(facts) <= most


def test_some_answers_are_reasoned_and_end_in_what_follows_from_the_description():
    answers = [
        row["answer"]
        for row in sft_rows(400, seed=5, mixture="reasoning")
        if row["task"] == "vqa" and row["prompt"] not in REQUESTS
    ]
    long = [answer for answer in answers if " " in answer]
    assert 0.2 < len(long) / len(answers) < 0.45
    for answer in long:
        description, _, last = answer.partition(". answer: ")
        assert read_claims(description) and final_answer(answer) == last and " " not in last


def test_corpus_holds_the_words_of_the_prompts_and_no_capitals():
    pieces = list(corpus())
    assert not any(letter.isupper() for piece in pieces for letter in piece)
    known = {word for piece in pieces for word in piece.split()}
    for name, rows in prompt_files().items():
        for row in rows if not name.startswith("descriptions") else ():
            lower = [word for word in row["prompt"].split() if word.islower()]
            assert set(lower) <= known
