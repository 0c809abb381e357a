from __future__ import annotations

from pathlib import Path

import pytest

from dina.eval.figures import PANELS
from dina.eval.metric_table import find, markdown, named, row, sections, undescribed

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run `make docs`"


def test_every_row_says_what_over_what_and_what_is_healthy() -> None:
    names = [metric.name for section in sections() for metric in section.metrics]
    assert len(names) == len(set(names)) > 60
    for section in sections():
        assert section.title.endswith("?") and section.intro
        for metric in section.metrics:
            assert metric.meaning and metric.over and metric.healthy, metric.name
            assert metric.low is None or metric.high is None or metric.low < metric.high
            example = metric.name.replace("<level>", "3")
            assert find(example) is metric, f"{metric.name} is hidden by {find(example)}"


@pytest.mark.parametrize(
    ("name", "of", "title"),
    [
        ("reward", "reward", "reward"),
        ("level_12/entropy", "level_<level>/entropy", "level 12"),
        ("rewards/ocr/mean", "rewards/<reward>/mean", "ocr"),
        ("rewards/ocr/fail_rate", "rewards/<reward>/fail_rate", "ocr failed"),
        ("rewards/server/text/similarity", "rewards/<reward>/<part>", "server/text/similarity"),
        ("rewards/ocr/seconds", "rewards/<reward>/seconds", "ocr"),
        ("eval/unique_ratio", "eval/unique_ratio", "evaluation"),
        ("eval/color_attr", "eval/<tag>", "color_attr"),
        ("mismatch/frac_over_0.1", "mismatch/frac_over_<threshold>", "over 0.1"),
        ("mismatch/frac_non_finite", "mismatch/frac_non_finite", "no number"),
    ],
)
def test_a_name_finds_its_row_and_its_title(name: str, of: str, title: str) -> None:
    found = find(name)
    assert found is not None and found.name == of and found.title(name) == title


def test_unknown_names_are_told() -> None:
    assert undescribed(["step", "reward", "rewards", "level_x/entropy", "grad_norms"]) == [
        "grad_norms",
        "level_x/entropy",
        "rewards",
    ]


def test_levels_and_thresholds_come_in_the_order_of_their_numbers() -> None:
    levels = [f"level_{level}/kl" for level in (10, 2, 0)]
    assert named("level_<level>/kl", levels) == ["level_0/kl", "level_2/kl", "level_10/kl"]
    over = [f"mismatch/frac_over_{t}" for t in ("0.5", "1e-05", "0.01")]
    assert named("mismatch/frac_over_<threshold>", over) == [over[1], over[2], over[0]]


def test_panels_are_made_of_rows_of_the_table() -> None:
    assert PANELS.keys() == {section.key for section in sections()}
    for panels in PANELS.values():
        for panel in panels:
            assert panel.row.meaning
            # One axis serves all lines of a panel.
            assert len({row(name).unit for name in panel.metrics}) == 1 or panel.kind == "each", panel.title
