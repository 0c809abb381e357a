from __future__ import annotations

import json

import numpy as np
import pytest

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.judge import Verdict
from dina.eval.result import SIX, BenchmarkResult
from dina.model.sampling import SamplingParams
from tests.eval.world import FakeEngine, FakeJudge, prompts


def run(skill: float = 0.6, per_tag: int = 4, **settings):
    engine = FakeEngine(skill, reverse=settings.pop("reverse", False))
    result = run_benchmark(engine, prompts(per_tag), FakeJudge(), BenchmarkSettings(**settings), name="m")
    return engine, result


def test_seeds_depend_on_prompt_and_sample_only():
    first, _ = run(samples_per_prompt=3)
    second, _ = run(samples_per_prompt=3)
    seeds = [(r.prompt.id, r.index, r.seed) for r in first.requests]
    assert seeds == [(r.prompt.id, r.index, r.seed) for r in second.requests]
    assert len({seed for *_, seed in seeds}) == len(seeds)
    fewer = run_benchmark(FakeEngine(0.6), prompts(4)[5:], FakeJudge())
    known = {(prompt, index): seed for prompt, index, seed in seeds}
    assert all(known[row.sample] == row.seed for row in fewer.rows)


def test_another_base_seed_draws_other_samples():
    assert {r.seed for r in run(seed=0)[0].requests}.isdisjoint(r.seed for r in run(seed=1)[0].requests)


def test_greedy_answers_are_drawn_once_and_sampled_ones_as_often_as_pictures():
    engine, _ = run(samples_per_prompt=3)
    assert sum(r.prompt.task == "vqa" for r in engine.requests) == 4
    engine, _ = run(samples_per_prompt=3, answers=SamplingParams())
    assert sum(r.prompt.task == "vqa" for r in engine.requests) == 12


def test_order_of_arrival_does_not_matter():
    assert run(reverse=True)[1].rows == run()[1].rows


def test_scores_are_averaged_by_prompt_then_category_then_over_the_six():
    _, result = run(per_tag=20, samples_per_prompt=2)
    by_hand = [np.mean([row.score for row in result.rows if row.tag == tag]) for tag in SIX]
    assert result.overall.mean == pytest.approx(np.mean(by_hand))
    assert result.overall.n == 120
    assert result.category("counting").n == 20
    assert result.tags == [*SIX, "text_rendering", "vqa"]


def test_pictures_are_counted_without_those_of_questions():
    _, result = run(per_tag=4, samples_per_prompt=2)
    assert result.pictures.pictures == 7 * 4 * 2
    assert 0 < result.pictures.unique_ratio <= 1


class BrokenJudge(FakeJudge):
    def judge(self, samples):
        verdicts = super().judge(samples)
        return [
            Verdict(None, failure="RuntimeError: no detector") if s.prompt.tag == "colors" else v
            for s, v in zip(samples, verdicts, strict=True)
        ]


def test_failed_scores_are_counted_shown_and_never_zero():
    result = run_benchmark(FakeEngine(1.0), prompts(3), BrokenJudge())
    assert result.overall.mean == 1.0 and result.overall.n == 15
    summary = result.summary()
    assert summary["failures"] == 3
    assert summary["failure_reasons"] == {"RuntimeError: no detector": 3}
    assert summary["categories"]["colors"]["mean"] is None
    assert summary["categories"]["colors"]["failures"] == 3


class ForgetfulEngine(FakeEngine):
    def generate(self, requests, sampling):
        yield from list(super().generate(requests, sampling))[1:]


def test_a_sample_that_never_arrives_is_a_failure():
    result = run_benchmark(ForgetfulEngine(1.0), prompts(2, ["counting"]), FakeJudge())
    assert [row.failure for row in result.rows] == ["the engine returned no sample", None]


def test_json_carries_intervals_label_and_seeds(tmp_path):
    _, result = run(samples_per_prompt=2)
    result.save(tmp_path / "evaluation.json")
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert data["label"] == "GenEval-style (test detector)"
    assert set(data["overall"]) >= {"mean", "low", "high", "n", "level", "categories"}
    assert data["overall"]["low"] <= data["overall"]["mean"] <= data["overall"]["high"]
    assert data["categories"]["counting"]["further"]["graded"]["n"] == 4
    assert data["settings"]["seed"] == 0 and data["settings"]["pictures"]["temperature"] == 1.0
    assert len(data["rows"]) == len(result.rows) and data["rows"][0]["seed"] == result.rows[0].seed


def test_metrics_for_a_training_log():
    _, result = run()
    metrics = result.metrics()
    assert metrics["eval/overall"] == result.overall.mean and metrics["eval/fail_rate"] == 0.0
    assert set(metrics) == {f"eval/{name}" for name in (*result.tags, "overall", "unique_ratio", "fail_rate")}


def test_a_place_that_cannot_be_written_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DinaError, match="Cannot write the evaluation"):
        run(per_tag=1)[1].save(tmp_path / "file" / "evaluation.json")


def test_results_survive_the_disk(tmp_path):
    _, result = run()
    result.save(tmp_path / "evaluation.json")
    loaded = BenchmarkResult.load(tmp_path / "evaluation.json")
    assert loaded.rows == result.rows
    assert loaded.to_json() == result.to_json()
    assert loaded.overall == result.overall
    assert np.array_equal(loaded.rows[0].image, result.rows[0].image)


def test_numbers_that_are_not_finite_never_reach_the_json(tmp_path):
    _, result = run()
    result.rows[0].guards["dark_share"] = float("nan")
    result.save(tmp_path / "evaluation.json")
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()


def test_pictures_outside_the_folder_are_not_read(tmp_path):
    _, result = run(per_tag=1)
    result.save(tmp_path / "inside" / "evaluation.json")
    path = tmp_path / "inside" / "evaluation.json"
    data = json.loads(path.read_text())
    (tmp_path / "secret.png").write_bytes((tmp_path / "inside" / data["rows"][0]["picture"]).read_bytes())
    data["rows"][0]["picture"] = "../secret.png"
    path.write_text(json.dumps(data))
    assert BenchmarkResult.load(path).rows[0].image is None


def test_unusable_input_is_an_error_for_people(tmp_path):
    with pytest.raises(DinaError, match="no prompts"):
        run_benchmark(FakeEngine(1.0), [], FakeJudge())
    with pytest.raises(DinaError, match="'counting-0' occurs twice"):
        run_benchmark(FakeEngine(1.0), prompts(1, ["counting"]) * 2, FakeJudge())
    with pytest.raises(DinaError, match="Cannot read"):
        BenchmarkResult.load(tmp_path / "missing.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(DinaError, match="no evaluation written by"):
        BenchmarkResult.load(tmp_path / "other.json")


def test_progress_reaches_the_end():
    seen = []
    run_benchmark(
        FakeEngine(1.0),
        prompts(2),
        FakeJudge(),
        on_sample=lambda done, total: seen.append((done, total)),
        batch=5,
    )
    assert seen[-1] == (16, 16) and seen == sorted(seen)
