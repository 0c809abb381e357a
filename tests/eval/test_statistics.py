from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from dina.eval.statistics import (
    Interval,
    auc_interval,
    mean_interval,
    paired_interval,
    paired_stratified_interval,
    paired_two_level_interval,
    run_interval,
    stratified_interval,
    two_level_interval,
)


def test_constant_data_have_an_interval_without_width():
    interval = mean_interval(np.full(30, 0.7))
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.7, 0.7, 0.7, 30)


def test_no_data_is_nan_and_becomes_null_in_json():
    interval = mean_interval([])
    assert interval.n == 0 and math.isnan(interval.mean)
    assert interval.to_json()["mean"] is None
    assert math.isnan(Interval.from_json(interval.to_json()).low)


def test_same_seed_gives_the_same_interval_and_another_seed_nearly():
    values = np.random.default_rng(0).random(80)
    first, again, other = (mean_interval(values, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.low != other.low and abs(first.low - other.low) < 0.01


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(3).normal(0.5, 0.2, size=400)
    interval = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.002)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.002)


def test_coverage_of_a_proportion_is_near_its_nominal_value():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(400):
        interval = mean_interval(rng.random(60) < 0.4, seed=trial, resamples=600)
        hits += interval.low <= 0.4 <= interval.high
    assert 0.90 <= hits / 400 <= 0.98


def test_overall_weighs_categories_equally_whatever_their_size():
    interval = stratified_interval({"a": np.ones(2), "b": np.zeros(200)})
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert interval.n == 202


def test_stratification_removes_the_variation_between_categories():
    rng = np.random.default_rng(1)
    easy, hard = 0.9 + 0.01 * rng.random(50), 0.1 + 0.01 * rng.random(50)
    stratified = stratified_interval({"easy": easy, "hard": hard})
    pooled = mean_interval(np.concatenate([easy, hard]))
    assert stratified.high - stratified.low < 0.05 * (pooled.high - pooled.low)


def test_empty_categories_are_left_out():
    assert stratified_interval({"a": [1.0, 1.0], "b": []}).mean == 1.0


def test_pairs_cancel_the_difficulty_of_prompts():
    rng = np.random.default_rng(2)
    difficulty = rng.random(100)
    before, after = difficulty, difficulty + 0.1 + 0.01 * rng.normal(size=100)
    gain = paired_interval(before, after)
    assert gain.mean == pytest.approx(0.1, abs=0.005)
    assert gain.high - gain.low < 0.01
    assert gain.excludes(0.0) and not gain.excludes(gain.mean)


def test_pairs_of_unlike_shape_are_refused():
    with pytest.raises(ValueError, match="'a' has 2 prompts before and 3 after"):
        paired_stratified_interval({"a": [0, 1]}, {"a": [0, 1, 1]})
    with pytest.raises(ValueError, match="categories differ"):
        paired_stratified_interval({"a": [0]}, {"b": [0]})
    with pytest.raises(ValueError, match="holds NaN"):
        mean_interval([0.0, math.nan])


def test_two_levels_with_one_run_equal_the_stratified_bootstrap():
    rng = np.random.default_rng(4)
    run = {"a": rng.random(40), "b": rng.random(60)}
    one, flat = two_level_interval([run]), stratified_interval(run)
    assert one.mean == pytest.approx(flat.mean)
    assert one.low == pytest.approx(flat.low, abs=0.005)
    assert one.high == pytest.approx(flat.high, abs=0.005)


def test_runs_that_differ_widen_the_interval():
    prompts = np.random.default_rng(5).random(100)
    alike = two_level_interval([{"a": prompts}] * 4)
    spread = two_level_interval([{"a": prompts + shift} for shift in (-0.3, -0.1, 0.1, 0.3)])
    assert spread.mean == pytest.approx(alike.mean)
    assert spread.high - spread.low > 2 * (alike.high - alike.low)


def test_copies_of_one_run_are_no_new_evidence_about_prompts():
    run = {"a": np.random.default_rng(6).random(50)}
    once, copied = two_level_interval([run]), two_level_interval([run] * 5)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.05)


def test_two_level_coverage_with_many_runs():
    rng = np.random.default_rng(8)
    hits = 0
    for trial in range(200):
        prompt, run = rng.normal(0, 0.2, 40), rng.normal(0, 0.1, 8)
        scores = 0.5 + prompt[None] + run[:, None] + rng.normal(0, 0.1, (8, 40))
        interval = two_level_interval([{"a": row} for row in scores], seed=trial, resamples=500)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.88 <= hits / 200 <= 1.0


def test_gain_of_runs_over_a_common_start():
    start = {"a": np.array([0.2, 0.4, 0.6])}
    ends = [{"a": start["a"] + 0.1}, {"a": start["a"] + 0.3}]
    gain = paired_two_level_interval(start, ends)
    assert gain.mean == pytest.approx(0.2)
    half = 0.1 * math.sqrt(2)  # both draws of one run alone, stretched for having two runs
    assert gain.low == pytest.approx(0.2 - half) and gain.high == pytest.approx(0.2 + half)
    same = paired_two_level_interval([start, start], ends)
    assert same == gain


def test_two_level_coverage_with_three_runs():
    rng = np.random.default_rng(9)
    hits = 0
    for trial in range(200):
        prompt, run = rng.normal(0, 0.3, 50), rng.normal(0, 0.04, 3)
        scores = 0.5 + prompt[None] + run[:, None]
        interval = two_level_interval([{"a": row} for row in scores], seed=trial, resamples=500)
        hits += interval.low <= 0.5 <= interval.high
    assert hits / 200 >= 0.88


def test_difference_of_two_kinds_of_run_shares_the_prompts():
    rng = np.random.default_rng(10)
    difficulty = rng.random(80)
    runs = [{"a": difficulty + 0.2 + 0.01 * rng.normal(size=80)} for _ in range(3)]
    control = [{"a": difficulty + 0.05 + 0.01 * rng.normal(size=80)} for _ in range(2)]
    gain = two_level_interval(runs, control=control)
    assert gain.mean == pytest.approx(0.15, abs=0.005)
    assert gain.high - gain.low < 0.02 < two_level_interval(runs).high - two_level_interval(runs).low


def test_runs_with_other_prompts_are_refused():
    with pytest.raises(ValueError, match=r"'a' has \[2, 3\] prompts"):
        two_level_interval([{"a": [0, 1]}, {"a": [0, 1, 1]}])


def test_run_interval_is_students_t():
    interval = run_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(run_interval([1.0]).low)


def test_auc_counts_pairs_and_ties():
    assert auc_interval([3.0, 4.0], [1.0, 2.0]).mean == 1.0
    assert auc_interval([1.0, 2.0], [1.0, 2.0]).mean == 0.5
    assert auc_interval([1.0, 3.0], [2.0, 2.0]).mean == 0.5


def test_auc_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    truth = norm.cdf(1 / np.sqrt(2))  # of two normals, one standard deviation apart
    hits = 0
    for seed in range(60):
        found = auc_interval(rng.normal(1, 1, 60), rng.normal(0, 1, 60), seed=seed, resamples=400)
        hits += found.low <= truth <= found.high
    assert hits >= 50
