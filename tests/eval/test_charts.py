from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html import unescape

import pytest

from dina.eval.bars import Bar, difference_track, interval_bars
from dina.eval.charts import Line, line_chart
from dina.eval.statistics import Interval

NAN = math.nan


def drawing(markup: str) -> ElementTree.Element:
    found = re.search(r"<svg viewBox.*?</svg>", markup, re.S)
    assert found
    return ElementTree.fromstring(found.group())


def chart(y, x=None, **options):
    x = x or list(range(1, len(y) + 1))
    return line_chart("Title", [Line("a", x, y, "var(--after)")], **options)


def hover(markup: str):
    return json.loads(unescape(re.search(r'data-chart="(.*?)"', markup).group(1)))


def test_points_lie_where_the_axis_says():
    path = drawing(chart([0.0, 0.5, 1.0])).find("path").attrib["d"]
    assert path == "M0.0 1000.0L500.0 500.0L1000.0 0.0"


def test_gaps_are_not_bridged_and_lone_points_are_seen():
    path = drawing(chart([0.0, NAN, 1.0, 1.0, NAN, 0.5])).find("path").attrib["d"]
    assert path.count("M") == 3
    assert path.startswith("M0.0 1000.0L0.0 1000.0M") and path.endswith("M1000.0 500.0L1000.0 500.0")


def test_a_single_step_is_a_dot():
    only = drawing(chart([0.3])).find("path")
    assert only.attrib["class"] == "line dots" and "nan" not in only.attrib["d"]


@pytest.mark.parametrize("values", [[], [NAN, NAN], [math.inf]])
def test_nothing_to_draw_is_no_chart(values):
    assert chart(values) == ""


def test_constant_and_zero_series_have_an_axis():
    assert "nan" not in chart([2.0, 2.0]) and "nan" not in chart([0.0, 0.0], zero=True, percent=True)
    assert "−" not in re.findall(r'class="y-axis".*?</div>', chart([0.0, 0.0], zero=True, percent=True))[0]


def test_log_axis_has_powers_of_ten_and_survives_zero():
    markup = chart([1e-7, 0.0, 1e-2], log=True)
    assert ">1e−7<" in markup and ">0.01<" in markup
    assert "nan" not in markup and "inf" not in markup
    path = drawing(markup).find("path").attrib["d"]
    assert path.split("L")[1].endswith(" 1000.0")


def test_band_is_drawn_behind_the_line():
    line = Line("a", [1, 2], [0.5, 0.6], "red", band=([0.4, 0.5], [0.6, 0.7]))
    kinds = [child.tag for child in drawing(line_chart("Title", [line])) if child.tag != "line"]
    assert kinds == ["polygon", "path"]


def test_the_read_out_has_every_series_at_every_step():
    lines = [Line("a", [1, 2], [0.5, 0.25], "red"), Line("b", [2, 3], [1.0, NAN], "blue")]
    data = hover(line_chart("Title", lines, percent=True))
    assert data["x"] == ["1", "2", "3"]
    assert [s["y"] for s in data["series"]] == [["50 %", "25 %", "–"], ["–", "100 %", "–"]]


def test_words_are_escaped():
    markup = line_chart("<b>", [Line('"><script>', [1, 2], [1, 2], "red")] * 2, unit="<u>", note="<i>")
    assert "<script>" not in markup and "<b>" not in markup and "<u>" not in markup and "<i>" not in markup
    assert "<script>" not in interval_bars(
        [("<script>", [Bar("<script>", Interval(0.5, 0.4, 0.6, 3), "red")])]
    )


def test_bars_carry_value_and_interval():
    markup = interval_bars([("Counting", [Bar("after", Interval(0.5, 0.25, 0.75, 20), "var(--after)")])])
    assert 'width="50.00%"' in markup and 'x1="25.00%" x2="75.00%"' in markup
    assert "95 % interval 25.0 to 75.0" in markup
    assert interval_bars([("None", [Bar("after", Interval(NAN, NAN, NAN, 0), "red")])]).count("rect") == 0


@pytest.mark.parametrize(
    ("low", "high", "state"), [(0.1, 0.3, "good"), (-0.3, -0.1, "bad"), (-0.1, 0.2, "open")]
)
def test_track_shows_whether_zero_is_excluded(low, high, state):
    markup = difference_track(Interval((low + high) / 2, low, high, 9), 0.5)
    assert f'class="track {state}"' in markup
    assert difference_track(Interval(NAN, NAN, NAN, 0), 0.5) == ""
