from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dina.errors import DinaError
from dina.rl.data import PromptOrder, check_prompt_lengths, difficulty_of, load_prompts
from dina.rl.recipe.config import DataConfig
from dina.rollout.protocol import Prompt
from tests.golden import FOLDER as GOLDEN

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def draw_red(scene: dict[str, Any]) -> np.ndarray:
    if scene.get("broken"):
        raise ValueError("no room")
    return RED


def jsonl(folder: Path, *rows: dict[str, Any] | str, name: str = "p.jsonl") -> Path:
    file = folder / name
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return file


def problem(path: Path, **options: Any) -> str:
    with pytest.raises(DinaError) as caught:
        load_prompts(path, **options)
    return str(caught.value)


def test_a_row_becomes_a_prompt(tmp_path: Path) -> None:
    include = [{"class": "star", "count": 3, "color": "red"}, {"class": "dot", "position": ["left of", 0]}]
    row = {
        "id": "a",
        "tag": "counting",
        "prompt": "three red stars",
        "include": include,
        "grid": [8, 12],
        "note": 5,
    }
    [prompt] = load_prompts(jsonl(tmp_path, row))
    assert (prompt.id, prompt.text, prompt.task, prompt.tag) == ("a", "three red stars", "t2i", "counting")
    assert prompt.grid == (8, 12)
    assert prompt.image is None
    assert prompt.columns == {"tag": "counting", "include": include, "note": 5}


def test_genevals_own_form_needs_no_id_and_no_grid(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path, {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"}
    )
    [prompt] = load_prompts(file, grid=[8, 8])
    assert (prompt.id, prompt.grid) == ("p-1", (8, 8))


def test_genevals_553_prompts_are_read() -> None:
    file = GOLDEN.parent / "data" / "geneval" / "evaluation_metadata.jsonl"
    if not file.is_file():
        pytest.skip("GenEval's prompts are not beside the checkout")
    prompts = load_prompts(file, grid=(8, 8))
    assert len(prompts) == 553
    assert len({prompt.tag for prompt in prompts}) == 6


def test_a_question_gets_its_picture_from_a_file_or_a_scene(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "red.png")
    file = jsonl(
        tmp_path,
        {"task": "vqa", "prompt": "what colour?", "answer": "red", "image": "red.png"},
        {"task": "vqa", "prompt": "what colour?", "answer": ["red"], "scene": {"objects": []}},
        {"task": "vqa", "prompt": "what colour?", "answer": "red", "scene": '{"objects": []}'},
    )
    for renderer in (draw_red, f"{__name__}:draw_red"):
        from_file, *from_scene = load_prompts(file, renderer=renderer)
        for prompt in (from_file, *from_scene):
            assert prompt.image is not None and np.array_equal(prompt.image, RED)
            assert prompt.grid is None
        assert from_file.columns["answer"] == "red"


def test_parquet_reads_as_the_same_prompts(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [
        {"id": "a", "prompt": "a cow", "tag": "x", "include": [{"class": "cow", "count": 1, "color": "red"}]},
        {"id": "b", "prompt": "two", "tag": "y", "include": [{"class": "cow"}, {"class": "dog"}]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    assert load_prompts(tmp_path / "p.parquet", grid=(2, 2)) == load_prompts(
        jsonl(tmp_path, *rows), grid=(2, 2)
    )


def test_a_picture_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(RED).save(folder / "red.png")
    jsonl(
        folder,
        {"file_name": "red.png", "task": "vqa", "prompt": "what colour?", "answer": "red"},
        name="metadata.jsonl",
    )
    [prompt] = load_prompts(folder)
    assert prompt.image is not None and np.array_equal(prompt.image, RED)
    assert (prompt.text, prompt.columns["answer"]) == ("what colour?", "red")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"prompt": "x"', "p.jsonl:2: not valid JSON: Expecting ',' delimiter at column 15"),
        ("[1]", "p.jsonl:2: a line is one JSON object"),
        ({"tag": "x"}, "p.jsonl:2: prompt: is required and not set"),
        ({"promt": "x"}, "p.jsonl:2: promt: unknown key; did you mean 'prompt'?"),
        ({"prompt": 3}, "p.jsonl:2: prompt: must be a valid string, not 3"),
        (
            {"prompt": "x", "task": "t2v"},
            "p.jsonl:2: task: must be 't2i' or 'vqa', not 't2v'; did you mean 't2i'?",
        ),
        ({"prompt": "x", "grid": [8]}, "p.jsonl:2: grid: "),
        ({"prompt": "x", "grid": [8, 0]}, "p.jsonl:2: grid.1: must be greater than or equal to 1, not 0"),
        ({"prompt": "x"}, "p.jsonl:2: grid is required and not set"),
        ({"prompt": "x", "include": [{"count": 1}]}, "p.jsonl:2: include.0.class: is required and not set"),
        ({"prompt": "x", "include": [{"clas": "a"}]}, "p.jsonl:2: clas: unknown key; did you mean 'class'?"),
        (
            {"prompt": "x", "include": [{"class": "a", "count": "2"}]},
            "include.0.count: must be a valid integer, not '2'",
        ),
        (
            {"prompt": "x", "include": [{"class": "a", "position": "left"}]},
            "include.0.position: must be a valid list",
        ),
        ({"prompt": "x", "include": [{"class": "a", "position": [0, "left of"]}]}, '["left of", 0]'),
        ({"prompt": "x", "include": {"class": "a"}}, "include: must be a valid list"),
        (
            {"prompt": "x", "task": "vqa", "answer": 3, "image": "x"},
            "answer: must be a valid string or must be a valid list",
        ),
        ({"prompt": "x", "task": "vqa", "answer": "3"}, "a vqa row needs the picture it asks about"),
        ({"prompt": "x", "task": "vqa", "image": "no.png"}, "p.jsonl:2: image: "),
        ({"prompt": "x", "task": "vqa", "scene": "{"}, "p.jsonl:2: scene: "),
        ({"prompt": "x", "task": "vqa", "scene": {}}, "data.renderer (module:attr) must draw it"),
        ({"id": "a", "prompt": "x", "grid": [1, 1]}, "p.jsonl:2: id 'a' is already that of"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any, expected: str) -> None:
    file = jsonl(tmp_path, {"id": "a", "prompt": "x", "grid": [1, 1]}, row)
    message = problem(file)
    assert expected in message
    assert message.count("\n") == 0


def test_a_scene_that_cannot_be_drawn_names_its_line(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"prompt": "x", "task": "vqa", "scene": {"broken": True}})
    assert "p.jsonl:1: scene: cannot be drawn: no room" in problem(file, renderer=draw_red)


def test_missing_empty_and_foreign_files_are_errors(tmp_path: Path) -> None:
    jsonl(tmp_path, {"prompt": "x"}, name="prompts.jsonl")
    assert "did you mean 'prompts.jsonl'?" in problem(tmp_path / "promts.jsonl")
    (tmp_path / "e.jsonl").write_text("\n\n")
    assert "e.jsonl holds no prompt" in problem(tmp_path / "e.jsonl")
    (tmp_path / "e.txt").write_text("x")
    assert "prompts are .jsonl, .parquet" in problem(tmp_path / "e.txt")
    (tmp_path / "bad.parquet").write_text("not parquet")
    assert "is not a readable Parquet file" in problem(tmp_path / "bad.parquet")
    (tmp_path / "folder").mkdir()
    assert "has no metadata.jsonl" in problem(tmp_path / "folder")


def test_tags_choose_prompts_and_an_unknown_tag_is_an_error(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path, *({"prompt": tag, "tag": tag, "grid": [1, 1]} for tag in ("colors", "counting", "colors"))
    )
    assert [prompt.text for prompt in load_prompts(file, tags=["colors"])] == ["colors", "colors"]
    assert "has the tag 'color'; did you mean 'colors'?" in problem(file, tags=["color"])


def test_pictures_of_other_tags_are_not_needed(tmp_path: Path) -> None:
    rows = ({"prompt": "x", "tag": "a", "grid": [1, 1]}, {"prompt": "x", "task": "vqa", "scene": {}})
    assert len(load_prompts(jsonl(tmp_path, *rows), tags=["a"])) == 1


def test_a_prompt_that_is_too_long_is_refused() -> None:
    prompts = prompts_of({"a": 3})
    check_prompt_lengths(prompts, lambda prompt: 10, limit=10)
    with pytest.raises(DinaError, match="'a-0' has 11 tokens, and at most 10 fit .so it is with 3 prompts"):
        check_prompt_lengths(prompts, lambda prompt: 11, limit=10)


def prompts_of(tags: dict[str, int]) -> list[Prompt]:
    return [
        Prompt(f"{tag}-{i}", "x", columns={"tag": tag}) for tag, count in tags.items() for i in range(count)
    ]


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_shuffle_takes_every_prompt_once_per_epoch_in_new_order() -> None:
    order = PromptOrder(prompts_of({"a": 20, "b": 3}), seed=1)
    epochs = [ids(order.take(23)) for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 23
    assert epochs[0] != epochs[1] != epochs[2]


def test_balanced_takes_the_tags_in_turn() -> None:
    order = PromptOrder(prompts_of({"a": 50, "b": 3, "c": 7}), seed=1, sampling="balanced")
    taken = order.take(42)
    assert Counter(prompt.tag for prompt in taken) == {"a": 14, "b": 14, "c": 14}
    assert [prompt.tag for prompt in taken[:6]] == ["a", "b", "c", "a", "b", "c"]
    assert set(Counter(prompt.id for prompt in taken if prompt.tag == "b").values()) <= {4, 5}
    assert len({prompt.id for prompt in taken if prompt.tag == "c"}) == 7


def test_a_round_holds_the_tags_by_their_weights() -> None:
    prompts = prompts_of({"a": 50, "b": 3, "c": 7})
    order = PromptOrder(prompts, seed=1, sampling={"a": 1, "b": 2, "c": 4})
    for _ in range(5):
        assert Counter(prompt.tag for prompt in order.take(7)) == {"a": 1, "b": 2, "c": 4}
    assert [p.tag for p in order.take(7)] == ["c", "b", "c", "a", "c", "b", "c"]
    assert len({p.id for p in PromptOrder(prompts, 1, {"a": 1, "b": 1, "c": 1}).take(9)}) == 9
    with pytest.raises(DinaError, match="weighs the tags a, d, but the prompts have a, b, c"):
        PromptOrder(prompts, 1, {"a": 1, "d": 2})


def test_weights_of_tags_that_are_left_out_go_with_them() -> None:
    weights = {"a": 1, "b": 2, "c": 4}
    assert DataConfig(train="x", sampling=weights).sampling == weights
    assert DataConfig(train="x", sampling=weights, tags=["a", "c"]).sampling == {"a": 1, "c": 4}


@pytest.mark.parametrize("sampling", ["shuffle", "balanced", {"a": 3, "b": 1}])
def test_a_resumed_order_goes_on_where_it_stopped(sampling: Any) -> None:
    prompts = prompts_of({"a": 5, "b": 4})
    whole = ids(PromptOrder(prompts, 3, sampling).take(40))
    first = PromptOrder(prompts, 3, sampling)
    head = ids(first.take(17))
    state = json.loads(json.dumps(first.state_dict()))
    second = PromptOrder(list(reversed(prompts)), 3, sampling)
    second.load_state_dict(state)
    assert head + ids(second.take(23)) == whole


def test_the_seed_changes_the_order_and_other_prompts_are_refused() -> None:
    prompts = prompts_of({"a": 30})
    first = PromptOrder(prompts, 3)
    assert ids(first.take(30)) != ids(PromptOrder(prompts, 4).take(30))
    for other in (PromptOrder(prompts[:-1], 3), PromptOrder(prompts, 4)):
        with pytest.raises(DinaError, match="have changed since the checkpoint"):
            other.load_state_dict(first.state_dict())
    with pytest.raises(DinaError, match="no prompts"):
        PromptOrder([], 0)


def texts(first: int, *words: list[str]) -> list[Prompt]:
    return [
        Prompt(f"t{first + i}", "a sign", columns={"tag": "text", "text": drawn})
        for i, drawn in enumerate(words)
    ]


def test_text_buckets_take_numbers_and_lengths_of_texts_in_turn() -> None:
    one, long, two = (
        texts(0, *[["CAT"]] * 6),
        texts(10, ["A LONG SENTENCE"]),
        texts(20, ["A", "B"], ["C", "D"]),
    )
    quoted = Prompt("q", 'a sign that says "DOG"', columns={"tag": "text"})
    plain = Prompt("p", "a star", columns={"tag": "shape"})
    prompts = [*one, *long, *two, quoted, plain]
    order = PromptOrder(prompts, seed=0, sampling="text_buckets")
    taken = order.take(6 * 14)
    assert [prompt.tag for prompt in taken[:4]] == ["shape", "text"] * 2
    short = [p.id for p in taken if p in [*one, quoted]]
    counts = Counter(p.id for p in taken)
    # A third of the texts each, however many prompts a bucket has; within one, every prompt as often.
    assert counts["t10"] == counts["t20"] + counts["t21"] == len(short) == 14
    assert counts["p"] == 42 and set(Counter(short).values()) == {2}


def test_a_changed_text_is_noticed_where_it_decides_the_order() -> None:
    before, after = texts(0, ["CAT"], ["DOG"]), texts(0, ["CAT"], ["A LONG SENTENCE"])
    PromptOrder(after, 0).load_state_dict(PromptOrder(before, 0).state_dict())
    state = PromptOrder(before, 0, "text_buckets").state_dict()
    with pytest.raises(DinaError, match="have changed"):
        PromptOrder(after, 0, "text_buckets").load_state_dict(state)


def rated(count: int, rate: float, start: int = 0) -> list[Prompt]:
    return [Prompt(f"{start + i}", "?", columns={"tag": "q", "pass_rate": rate}) for i in range(count)]


def test_difficulty_sets_how_many_prompts_of_each_band_a_round_has() -> None:
    prompts = [*rated(3, 0.25), *rated(5, 0.5, 10), *rated(4, 0.75, 20)]
    order = PromptOrder(prompts, seed=1, difficulty={"hard": 3, "medium": 2, "easy": 1})
    for _ in range(8):
        bands = [difficulty_of(p.columns["pass_rate"]) for p in order.take(6)]
        assert [bands.count(band) for band in ("hard", "medium", "easy")] == [3, 2, 1]
    without_easy = PromptOrder(prompts, seed=1, difficulty={"hard": 1, "medium": 1})
    assert {p.columns["pass_rate"] for p in without_easy.take(30)} == {0.25, 0.5}


def test_difficulty_works_within_tags_and_leaves_unrated_ones_alone() -> None:
    drawings = [Prompt(f"d{i}", "a star", columns={"tag": "t2i"}) for i in range(4)]
    order = PromptOrder(
        [*drawings, *rated(2, 0.25), *rated(6, 0.75, 10)],
        seed=0,
        sampling={"t2i": 1, "q": 2},
        difficulty={"hard": 1, "easy": 1},
    )
    for _ in range(5):
        taken = order.take(6)
        assert [p.tag for p in taken].count("t2i") == 2
        assert [p.columns.get("pass_rate") for p in taken].count(0.25) == 2


def test_difficulty_needs_pass_rates_and_a_band_with_weight() -> None:
    with pytest.raises(DinaError, match="prompt 'x' has no pass_rate.*dina prepare"):
        PromptOrder([*rated(2, 0.5), Prompt("x", "?", columns={"tag": "q"})], 0, difficulty={"hard": 1})
    with pytest.raises(DinaError, match="are medium, which have no weight"):
        PromptOrder(rated(2, 0.5), 0, difficulty={"hard": 1})


def test_a_changed_pass_rate_is_noticed_where_it_decides_the_order() -> None:
    before, after = rated(2, 0.25), [*rated(1, 0.25), *rated(1, 0.75, 1)]
    PromptOrder(after, 0).load_state_dict(PromptOrder(before, 0).state_dict())
    weights = {"hard": 1, "easy": 1}
    with pytest.raises(DinaError, match="have changed"):
        PromptOrder(after, 0, difficulty=weights).load_state_dict(
            PromptOrder(before, 0, difficulty=weights).state_dict()
        )


def test_a_question_column_makes_a_question(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "red.png")
    data = (tmp_path / "red.png").read_bytes()
    file = jsonl(tmp_path, {"question": "what colour?", "answer": "red", "image": "red.png"})
    [prompt] = load_prompts(file)
    assert (prompt.task, prompt.text, prompt.columns) == ("vqa", "what colour?", {"answer": "red"})
    # Parquet files without the types of `datasets` hold pictures as structs, some data sets as lists of one.
    bare = pa.table({"question": ["what colour?"], "image": [[{"bytes": data, "path": None}]]})
    pq.write_table(bare, tmp_path / "bare.parquet")
    [prompt] = load_prompts(tmp_path / "bare.parquet")
    assert prompt.image is not None and np.array_equal(prompt.image, RED)
