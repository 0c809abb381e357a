from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from dina.errors import DinaError
from dina.eval.benchmark import BenchmarkSettings, run_benchmark
from dina.eval.compare import compare
from dina.eval.report import write_report
from dina.eval.runs import read_run, running_mean
from tests.eval.world import FakeEngine, FakeJudge, prompts, write_run

HOSTILE = "</title></style><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def comparison():
    hostile = prompts(2)
    hostile[0].text = HOSTILE
    hostile[1].columns["answer"] = HOSTILE
    settings = BenchmarkSettings(samples_per_prompt=2)
    before, after = (
        run_benchmark(FakeEngine(skill), hostile, FakeJudge(), settings, name=name)
        for skill, name in ((0.4, "before" + HOSTILE), (0.8, "after"))
    )
    after.rows[0].score, after.rows[0].failure = None, "RuntimeError: " + HOSTILE
    after.rows[2].reason = HOSTILE
    return compare(before, after, ({"key" + HOSTILE: 1}, {"key" + HOSTILE: HOSTILE}))


@pytest.fixture(scope="module")
def page(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = write_run(folder / "run", steps=40, hostile=HOSTILE)
    return write_report(folder / "out", run=run, comparison=comparison, heading=HOSTILE).read_text("utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.errors: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


def test_hostile_words_stay_words(page):
    tags = Tags(page)
    assert [tag for tag, _ in tags.starts].count("script") == 1
    assert all(not name.startswith("on") for _, attrs in tags.starts for name in attrs)
    assert "alert(" in page and "<script>alert" not in page


def test_the_page_is_well_formed(page):
    tags = Tags(page)
    assert tags.errors == [] and tags.open == []


def test_the_page_loads_nothing(page):
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest", page)
    sources = [
        value for _, attrs in Tags(page).starts for name, value in attrs.items() if name in ("src", "href")
    ]
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "default-src 'none'" in page


def test_sections_and_links_agree(page):
    tags = Tags(page)
    ids = {attrs["id"] for _, attrs in tags.starts if "id" in attrs}
    links = {attrs["href"][1:] for tag, attrs in tags.starts if tag == "a"}
    assert links == {"scores", "pictures", "guards", "training", "film", "setup"} and links <= ids


def test_verdict_numbers_are_those_of_the_comparison(page, comparison):
    difference = comparison.overall.difference
    assert f"{100 * difference.mean:+.1f} points" in page
    assert f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]".replace("-", "−") in page
    assert "GenEval-style (test detector)" in page and "could not be measured" in page


@pytest.mark.parametrize(
    "title",
    [
        "Reward",
        "Entropy by level",
        "Largest |Δp|",
        "Sequences over a threshold",
        "Sequences kept",
        "KL to the reference",
        "Gradient norm",
        "Clipped actions by level",
        "Dark share",
    ],
)
def test_every_curve_is_there(page, title):
    assert f"<h3>{title}" in page


def test_levels_keep_their_colours_in_every_chart(page):
    charts = re.findall(r'<figure class="chart".*?</figure>', page, re.S)
    by_level = [chart for chart in charts if "by level" in chart]
    assert len(by_level) == 3
    for chart in by_level:
        assert re.search(r"stroke:var\(--level-2\)[^>]*/></svg>level 2", chart)


def test_a_run_brings_its_own_comparison(comparison, tmp_path):
    run = write_run(tmp_path / "run", steps=3)
    comparison.save(run / "evaluation")
    text = write_report(run, run=run).read_text("utf-8")
    assert (run / "report.html").is_file()
    assert 'id="scores"' in text and text.count("data:image/png") > 16


def test_an_evaluation_alone(comparison, tmp_path):
    text = write_report(tmp_path / "page.html", evaluation=comparison.after).read_text("utf-8")
    assert 'id="pictures"' in text and 'id="training"' not in text
    assert "Picture statistics" in text


def test_a_run_of_one_step(tmp_path):
    text = write_report(tmp_path, run=write_run(tmp_path / "run", steps=1)).read_text("utf-8")
    assert "in the only step" in text and "line dots" in text
    assert "nan" not in re.sub(r'src="data:image[^"]*', "", text).lower()


def test_a_run_with_nan_names_the_step(tmp_path):
    run = write_run(tmp_path / "run", steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "reward": NaN, "grad_norm": null}\n{"step": 6, "reward": 0.')
    text = write_report(tmp_path, run=run).read_text("utf-8")
    assert "Not finite in step 5: reward, grad_norm" in text
    assert "1 line(s) of metrics.jsonl are unreadable" in text


def test_a_reward_that_rises_while_a_held_out_one_falls_is_said(tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    rewards = [{"use": "objects"}, {"use": "self_judge", "held_out": True}]
    (run / "config.yaml").write_text(yaml.safe_dump({"rewards": rewards}))
    means = [{"rewards/objects/mean": i / 40, "rewards/self_judge/mean": 1 - i / 40} for i in range(40)]
    lines = [json.dumps({"step": step, **values}) for step, values in enumerate(means, 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    text = write_report(tmp_path, run=run).read_text("utf-8")
    assert re.search(r"Step 20: reward .{1,9}objects.{1,9} rose by .* while the held-out", text)
    (run / "metrics.jsonl").write_text("\n".join(lines[:19]))
    assert "while the held-out" not in write_report(tmp_path, run=run).read_text("utf-8")


def test_an_empty_run_is_still_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    text = write_report(tmp_path, run=tmp_path / "run").read_text("utf-8")
    assert "has logged no step" in text and "metrics.jsonl is missing" in text
    assert "config.yaml is missing" in text


def test_a_broken_config_is_a_note(tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    (run / "config.yaml").write_text("a: [1\n")
    (run / "environment.json").write_text("[]")
    assert "config.yaml is unreadable" in write_report(tmp_path, run=run).read_text("utf-8")


def test_later_lines_of_a_resumed_run_count(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 1}\n{"step": 2, "reward": 2}\n{"step": 2, "reward": 5}\n{"step": 3, "reward": 3}\n'
    )
    assert read_run(tmp_path).series("reward") == ([1, 2, 3], [1, 5, 3])


def test_running_mean_ignores_what_is_not_finite():
    assert running_mean([1.0, 3.0, float("nan"), 5.0], 2) == [1.0, 2.0, 3.0, 5.0]


def test_nothing_to_report_on_is_an_error(tmp_path):
    with pytest.raises(DinaError, match="Nothing to report on"):
        write_report(tmp_path)
    with pytest.raises(DinaError, match="no run folder"):
        write_report(tmp_path, run=tmp_path / "missing")
