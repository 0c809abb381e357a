from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.compare import Comparison, compare, diff_configs
from dina.eval.evaluate import compare_checkpoints, evaluate_checkpoint, first_of_each_category
from dina.eval.pictures import histogram_similarity
from dina.eval.seeds import gain_over_control, markdown_table, pool
from dina.eval.tables import print_comparison, print_result
from dina.eval.verdict import comparison_findings
from tests.eval.world import FakeEngine, FakeJudge, prompts


def result(skill: float, per_tag: int = 10, **settings):
    settings = BenchmarkSettings(**settings)
    return run_benchmark(FakeEngine(skill), prompts(per_tag), FakeJudge(), settings, name=f"skill {skill}")


def test_differences_are_paired_by_prompt_and_seed():
    comparison = compare(result(0.4), result(0.7))
    assert [r.seed for r in comparison.before.rows] == [r.seed for r in comparison.after.rows]
    gained = [
        b.score - a.score
        for a, b in zip(comparison.before.rows, comparison.after.rows, strict=True)
        if a.tag == "counting"
    ]
    score = comparison.categories["counting"]
    assert score.difference.mean == pytest.approx(sum(gained) / len(gained))
    assert score.difference.mean == pytest.approx(score.after.mean - score.before.mean)
    assert comparison.overall.clear and comparison.overall.difference.low > 0


def test_a_model_against_itself_differs_by_exactly_nothing():
    comparison = compare(result(0.5), result(0.5))
    difference = comparison.overall.difference
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert comparison.unique_ratio_kept == 1.0
    assert comparison.colour_similarity == pytest.approx(1.0)
    assert "No clear change" in comparison_findings(comparison)[0].text


def test_other_seeds_prompts_or_rules_are_refused():
    with pytest.raises(DinaError, match="another seed"):
        compare(result(0.5, seed=0), result(0.5, seed=1))
    with pytest.raises(DinaError, match="different samples"):
        compare(result(0.5, per_tag=2), result(0.5, per_tag=3))
    other = result(0.5)
    other.label = "GenEval-style (another detector)"
    with pytest.raises(DinaError, match="different rules"):
        compare(result(0.5), other)


def test_a_sample_that_failed_on_one_side_leaves_both():
    before, after = result(0.0, samples_per_prompt=2), result(1.0, samples_per_prompt=2)
    chosen = [row for row in after.rows if row.prompt_id == "counting-0"]
    chosen[0].score, chosen[0].failure = None, "timed out"
    comparison = compare(before, after)
    assert comparison.categories["counting"].left_out == 0
    chosen[1].score, chosen[1].failure = None, "timed out"
    comparison = compare(before, after)
    assert comparison.categories["counting"].left_out == 1
    assert comparison.categories["counting"].before.n == 9
    assert comparison.overall.difference.mean == 1.0
    assert any("2 after could not be measured" in f.text for f in comparison_findings(comparison))


@pytest.mark.parametrize(
    ("before", "after", "kind", "words"),
    [(0.2, 0.9, "good", "rose from"), (0.9, 0.2, "bad", "fell from"), (0.5, 0.5, "open", "No clear change")],
)
def test_the_verdict_says_what_the_interval_allows(before, after, kind, words):
    finding = comparison_findings(compare(result(before), result(after)))[0]
    assert finding.kind == kind and words in finding.text
    assert "GenEval-style (test detector)" in finding.text


def test_lost_understanding_and_collapse_are_named():
    comparison = compare(result(0.95, per_tag=15), result(0.3, per_tag=15))
    comparison.unique_ratio_kept = 0.4
    texts = {finding.text: finding.kind for finding in comparison_findings(comparison)}
    assert any("Understanding was lost" in text and kind == "bad" for text, kind in texts.items())
    assert any("less varied" in text and "0.40" in text and kind == "bad" for text, kind in texts.items())


def test_answers_of_every_category_stand_for_themselves_and_can_improve():
    before, after = result(0.2, per_tag=15), result(0.95, per_tag=15)
    for side in (before, after):
        for row in side.rows:
            if row.tag == "counting":
                row.tag, row.task = "description", "vqa"
        side.rows = [row for row in side.rows if row.task == "vqa"]
    comparison = compare(before, after)
    assert comparison.averaged == []
    texts = [finding.text for finding in comparison_findings(comparison)]
    assert any(text.startswith("Understanding (descriptions) improved") for text in texts)
    assert any(text.startswith("Understanding improved") for text in texts)


def test_json_carries_paired_intervals_and_no_nan(tmp_path):
    comparison = compare(result(0.4), result(0.7), ({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}))
    comparison.unique_ratio_kept = math.nan
    comparison.save(tmp_path)
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert set(data["overall"]["difference"]) == {"mean", "low", "high", "n", "level"}
    assert data["overall"]["categories"][0] == "single_object"
    assert data["pictures"]["unique_ratio_kept"] is None
    assert data["config_diff"] == [["a.b", 1, 2], ["c", None, 3]]
    loaded = Comparison.load(tmp_path)
    assert loaded.overall == comparison.overall and loaded.categories == comparison.categories


def test_config_diff_lists_leaves_only():
    assert diff_configs({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == []
    assert diff_configs({"a": {}}, {"a": 1}) == [("a", {}, 1)]


def test_tables_print_every_category(capsys):
    comparison = compare(result(0.4), result(0.7))
    console = Console(width=120, record=True)
    print_comparison(comparison, console)
    print_result(comparison.before, console)
    text = console.export_text()
    for word in ("Counting", "Question answering", "Mean of the six", "dark_share", "GenEval-style"):
        assert word in text


cached_result = functools.cache(result)


def open_fake(skills):
    opened = []

    def open_engine(path):
        engine = FakeEngine(skills[path.name])
        engine.close = lambda: opened.append(path.name)
        return engine

    return open_engine, opened


def test_checkpoints_are_opened_one_after_the_other_and_closed(tmp_path):
    open_engine, closed = open_fake({"a": 0.3, "b": 0.8})
    for name, rate in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"optim: {{lr: {rate}}}\n")
    comparison = compare_checkpoints(
        tmp_path / "a", tmp_path / "b", prompts(6), FakeJudge(), out=tmp_path / "out", open_engine=open_engine
    )
    assert closed == ["a", "b"]
    assert comparison.config_diff == [("optim.lr", 1, 2)]
    assert (tmp_path / "out" / "comparison.json").is_file()
    assert comparison.overall.difference.mean > 0


def test_evaluation_writes_json_and_pictures_and_closes_on_failure(tmp_path):
    open_engine, closed = open_fake({"a": 0.3})
    quiet = Console(quiet=True)
    evaluate_checkpoint(
        tmp_path / "a", prompts(1), FakeJudge(), out=tmp_path, open_engine=open_engine, console=quiet
    )
    assert len(list((tmp_path / "evaluation_pictures").glob("*.png"))) == 8
    with pytest.raises(DinaError):
        evaluate_checkpoint(tmp_path / "a", [], FakeJudge(), open_engine=open_engine)
    assert closed == ["a", "a"]


def test_limit_is_per_category():
    kept = first_of_each_category(prompts(5), 2)
    assert len(kept) == 16 and kept[0].id == "single_object-0"
    assert len(first_of_each_category(prompts(5), None)) == 40


def runs(skills, per_tag=8):
    return [compare(cached_result(0.4, per_tag), cached_result(skill, per_tag)) for skill in skills]


def test_pooling_keeps_every_run_in_sight():
    comparisons = runs([0.6, 0.8, 0.4])
    pooled = pool(comparisons)
    overall = pooled["overall"]
    assert overall.per_run == pytest.approx([c.overall.difference.mean for c in comparisons])
    assert overall.gain.mean == pytest.approx(sum(overall.per_run) / 3)
    assert overall.gain.low < overall.gain.mean < overall.gain.high
    assert overall.per_run[2] == 0.0
    assert set(pooled) == {*comparisons[0].categories, "overall"}
    assert overall.to_json()["over_runs"]["n"] == 3


def test_a_study_without_drawings_has_no_mean_of_drawings():
    def described(result):
        """The answers alone, in a category of their own such as descriptions."""
        rows = [replace(row, tag="description") for row in result.rows if row.task == "vqa"]
        return replace(result, rows=rows)

    comparisons = [compare(described(c.before), described(c.after)) for c in runs([0.6, 0.8])]
    assert set(pool(comparisons)) == {"description"}
    assert "Mean of" not in markdown_table({"GRPO": comparisons})


def test_gain_over_a_control():
    better = gain_over_control(runs([0.8, 0.82, 0.78]), runs([0.5, 0.52]))
    assert better.low > 0
    same = gain_over_control(runs([0.6]), runs([0.6]))
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_markdown_table_has_a_column_per_kind_of_run():
    table = markdown_table({"GRPO": runs([0.7, 0.8]), "continued SFT": runs([0.45])})
    head, rule, *rows = table.splitlines()
    assert head == "|  | before % | GRPO (2 runs) % | continued SFT (1 runs) % |"
    assert rule.count("---:") == 3
    assert any(row.startswith("| **Mean of the six** |") and "[" in row for row in rows)
    assert rows[-1].startswith("| gain of each run |  | +")


def test_runs_on_other_prompts_cannot_be_pooled():
    with pytest.raises(DinaError, match="different prompts"):
        pool([*runs([0.6], 4), *runs([0.6], 5)])
    with pytest.raises(DinaError, match="no comparison"):
        pool([])


def test_colour_similarity_sees_a_lost_colour():
    before = result(1.0)
    after = replace(before, pictures=replace(before.pictures, colours=dict(before.pictures.colours, red=0.0)))
    assert histogram_similarity(before.pictures.colours, after.pictures.colours) < 0.95
    assert compare(before, after).colour_similarity < 0.95
