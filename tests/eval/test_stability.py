from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from dina.eval.stability import RESULT, RunSummary, Study, effect, explosion, findings, read_study
from dina.eval.stability_report import write_stability_report

STEPS = 30
ARMS = {
    "none": [],
    "TIS": ["correction.mode=token_truncate"],
    "filter": ["filters.mismatch_tau=0.3"],
    "filters.mismatch_tau=0.05": ["filters.mismatch_tau=0.05"],
    "filters.mismatch_tau=0.9": ["filters.mismatch_tau=0.9"],
}
BURSTS = {
    "none": 10,
    "TIS": 22,
    "filter": None,
    "filters.mismatch_tau=0.05": None,
    "filters.mismatch_tau=0.9": 11,
}


def write_run(folder: Path, arm: str, seed: int) -> None:
    """A run whose entropy and gradient norm grow from the step of ``BURSTS`` on, and whose reward then falls."""
    folder.mkdir(parents=True)
    burst = BURSTS[arm]
    lines = []
    for step in range(1, STEPS + 1):
        late = max(0, step - burst) if burst else 0
        line = {
            "step": step,
            "entropy": 0.3 * (1 + 0.2 * late) + 0.001 * seed,
            "grad_norm": 0.5 * (1 + 0.4 * late),
            "reward": 0.5 + 0.005 * step - 0.03 * late + 0.001 * seed - (0.05 if "0.05" in arm else 0.0),
            "mismatch/mean_prob_diff": 1e-3 * (1 + late),
            "mismatch/frac_over_0.1": min(1.0, 0.01 * (1 + late)),
            "filter/kept": 0.9 if arm.startswith("filter") else 1.0,
        }
        if arm.startswith("filter"):
            line |= {"filter/mismatch/reward_dropped": 0.2, "filter/mismatch/reward_kept": 0.6}
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    outcome = {
        "setting": "int8",
        "arm": arm,
        "seed": seed,
        "stopped": "",
        "score": 0.8 if "0.05" in arm else 0.7,
    }
    (folder / RESULT).write_text(json.dumps(outcome))


def study(folder: Path, seeds: tuple[int, ...] = (0, 1, 2), written: int = 3) -> Study:
    planned = {("int8", arm, seed): folder / f"{i}-{seed}" for i, arm in enumerate(ARMS) for seed in seeds}
    for (_, arm, seed), path in planned.items():
        if seed < written:
            write_run(path, arm, seed)
    return read_study(
        Study(
            folder,
            "scenes/x",
            [],
            {"int8": ["rollout.faults.precision=int8"]},
            ARMS,
            [name for name in ARMS if "=" in name],
            2.0,
            2.0,
            5,
            planned,
        )
    )


def test_an_explosion_needs_entropy_and_where_asked_for_gradient_norm() -> None:
    rising = [1.0] * 10 + [5.0] * 10
    assert explosion(rising, rising, 5, 2.0, 2.0) == 11  # two of the five values of the running mean
    assert explosion(rising, [1.0] * 20, 5, 2.0, 2.0) is None
    assert explosion(rising, [1.0] * 20, 5, 2.0) == 11
    assert explosion([1.0] * 20, rising, 5, 2.0, 2.0) is None
    assert explosion(rising, rising, 5, 9.0, 2.0) is None
    assert explosion(rising[:5], rising[:5], 5, 2.0, 2.0) is None
    gaps = [*rising[:12], math.nan, *rising[13:]]
    assert explosion(rising, gaps, 5, 2.0, 2.0) == 11


def test_an_explosion_begins_where_training_has_brought_entropy_and_ends_above_its_start() -> None:
    fallen = [1.0] * 5 + [0.4] * 10
    # More than twice the lowest, but below the start.
    assert explosion([*fallen, *[0.9] * 10], [], 5, 2.0) is None
    assert explosion([*fallen, *[1.2] * 10], [], 5, 2.0) == len(fallen) + 3
    assert explosion([*fallen, *[1.2] * 10], [], 5, 4.0) is None


def test_summaries_say_what_the_runs_were_made_to_do(tmp_path: Path) -> None:
    made = study(tmp_path)
    for summary in made.summaries:
        burst = BURSTS[summary.arm]
        assert (summary.exploded_at is None) == (burst is None)
        if burst:
            assert burst < summary.exploded_at <= burst + 9
            assert summary.entropy_max > 2 * summary.entropy_first
    kept = next(s for s in made.summaries if s.arm == "filter")
    assert (kept.reward_dropped, kept.reward_kept, kept.kept) == pytest.approx((0.2, 0.6, 0.9))
    lines = made.csv().splitlines()
    assert len(lines) == 1 + len(made.planned) and lines[0].startswith("setting,arm,seed,steps,reward_first")


def test_effects(tmp_path: Path) -> None:
    made = study(tmp_path)

    def found(arm: str) -> str | None:
        return effect(made.of("int8", arm), made.of("int8", "none"), made.window)

    assert [found(arm) for arm in ARMS] == ["fails", "delays", "prevents", "prevents", "fails"]
    assert effect(made.of("int8", "filter"), made.of("int8", "filter"), 5) is None
    half = [*made.of("int8", "filter")[:1], *made.of("int8", "none")[:1]]
    assert effect(half, made.of("int8", "none"), 5) == "some"


def test_the_verdict_is_written_from_the_numbers(tmp_path: Path) -> None:
    texts = {finding.text: finding.kind for finding in findings(study(tmp_path))}

    def said(start: str) -> tuple[str, str]:
        [text] = [text for text in texts if text.startswith(start)]
        return text, texts[text]

    text, kind = said("int8: without correction")
    assert "3 of 3 seeds explode" in text and kind == "bad"
    text, kind = said("int8, TIS")
    assert "delays it" in text and "agrees with the paper" in text and kind == "open"
    text, kind = said("int8, filter:")
    assert (
        "prevents the explosion" in text and "keeps 90 %" in text and "agrees with" in text and kind == "good"
    )
    text, _ = said("int8, filters.mismatch_tau=0.9")
    assert "does not prevent it" in text and "contradicts the paper" in text
    assert "score without faults +0.000 [" in said("int8, filter:")[0]
    text, _ = said("int8: of the values that prevent it in all seeds")
    assert "filters.mismatch_tau=0.05 ends best (0.800; 0.3: 0.700)" in text


def test_the_cost_of_faults_is_set_against_runs_without_them(tmp_path: Path) -> None:
    made = study(tmp_path)
    made.settings["right"] = []
    unharmed = {"setting": "right", "score": 0.9, "entropy_max": 0.25, "grad_norm_max": 0.125}
    made.summaries += [RunSummary(**(vars(s) | unharmed)) for s in made.summaries if s.arm == "none"]
    [text] = [f.text for f in findings(made) if f.text.startswith("int8: without correction")]
    assert "score without faults -0.200 [-0.200, -0.200] against right." in text
    assert "(right: 0.25); gradient norm 0.5 → at most " in text and " (right: 0.125)); reward" in text
    [text] = [f.text for f in findings(made) if f.text.startswith("right: without correction")]
    assert "against" not in text


def test_where_nothing_explodes_the_verdict_says_so(tmp_path: Path) -> None:
    made = study(tmp_path)
    calm = [s for s in made.summaries if s.arm == "filter"]
    made.summaries = [*calm, *(RunSummary(**{**vars(s), "arm": "none"}) for s in calm)]
    texts = [finding.text for finding in findings(made)]
    assert any("0 of 3 seeds explode" in text for text in texts)
    assert any("had no explosion to prevent" in text and "paper" not in text for text in texts)


def test_a_part_of_the_study_is_reported_as_a_part(tmp_path: Path) -> None:
    made = study(tmp_path, written=1)
    assert findings(made)[0].text == "10 of 15 runs are not there yet."
    assert any("1 of 1 seeds explode" in finding.text for finding in findings(made))
    empty = study(tmp_path / "none", written=0)
    assert any("nothing can be said" in finding.text for finding in findings(empty))
    write_stability_report(empty, tmp_path / "empty.html")


def test_the_page_holds_every_curve_and_asks_nobody(tmp_path: Path) -> None:
    page = write_stability_report(study(tmp_path), tmp_path / "report.html").read_text()
    for title in ("Entropy", "Gradient norm", "Mean |Δp|", "Reward of what the filters keep and drop"):
        assert title in page
    for heading in ("Corrections", "Filters", "Values of filters.mismatch_tau"):
        assert f"<h3>{heading}</h3>" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "prevents the explosion" in page
    sweep = page[page.index("Values of filters.mismatch_tau</h3>") :]
    assert "filter: kept" in sweep and "filters.mismatch_tau=0.9" in sweep  # 0.3 is the arm `filter`
