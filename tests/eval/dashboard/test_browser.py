"""The dashboard as people meet it: in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dina.eval.sample_log import SampleRecord, append_records
from dina.rl.loop import train
from tests.eval.dashboard.world import run_with_samples, served
from tests.rl.ray_world import recipe, save_world

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")

expect = sync_api.expect
PAGES = ("overview", "stability", "samples", "speed", "compare", "metrics")
OWN = ("http://127.0.0.1:", "data:")
WAIT = 60_000
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: that of ``DINA_CHROMIUM``, of playwright, or of the system."""
    with sync_api.sync_playwright() as playwright:
        places = [
            os.environ.get("DINA_CHROMIUM"),
            playwright.chromium.executable_path,
            *map(shutil.which, _NAMES),
        ]
        found = next((place for place in places if place and Path(place).is_file()), None)
        if found is None:
            pytest.skip(
                "there is no Chromium here: `playwright install chromium`, or name one in DINA_CHROMIUM"
            )
        # Inside of a container Chromium's own sandbox cannot be had, and nothing but our own page is opened.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model that was really trained; its entropy filter is so strict that it drops."""
    world = save_world(tmp_path_factory.mktemp("world"))
    run = {"max_steps": 3, "save_steps": 0, "save_rollouts": 0, "sample_steps": 1}
    config = recipe(
        world,
        world / "trained",
        run=run,
        filters={"entropy_k": 1.0, "mismatch_tau": 0.1},
        rl={"runner": "local"},
    )
    return train(config)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with_samples(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def address(trained: Path, planted: Path) -> Iterator[str]:
    with served([trained, planted]) as address:
        yield address


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails its test for anything on the console, and for any request to elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, trouble = context.new_page(), []
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    page.on(
        "console",
        lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request", lambda request: trouble.append(request.url) if not request.url.startswith(OWN) else None
    )
    yield page
    assert trouble == []
    context.close()


def go(page: Any, address: str, run: str, name: str) -> None:
    page.goto(f"{address}/#/{run}/{name}")
    page.wait_for_selector(f'#page[data-page="{name}"]')


@pytest.mark.parametrize("name", PAGES)
def test_every_page_shows_the_run(page: Any, address: str, name: str) -> None:
    go(page, address, "trained", name)
    assert "step 3 of 3" in page.inner_text("#state") and "finished" in page.inner_text("#state")
    assert page.inner_text("#tabs [aria-current]").startswith(name.capitalize())
    if name in ("overview", "stability", "speed"):
        assert page.locator(".panel svg path, .panel svg rect").count() > 4
        for panel in page.locator(".panel").all():
            about = panel.locator(".about").inner_text()
            assert re.search(r"^Shows .+\nOver .+\nHealthy .+\ndocs$", about), about
    if name == "samples":
        page.wait_for_selector(".sample img")
        assert page.evaluate("document.querySelector('.sample img').decode().then(() => true)")
    if name == "speed":
        assert "generate" in page.inner_text(".stack")


def test_a_panel_leads_to_its_row_of_the_docs(page: Any, address: str) -> None:
    go(page, address, "trained", "stability")
    page.locator(".panel", has_text="Gradient norm").get_by_role("link", name="docs").click()
    page.wait_for_selector("tr.asked")
    assert page.inner_text("tr.asked").startswith("grad_norm")


def test_values_are_read_off_under_the_pointer(page: Any, address: str) -> None:
    go(page, address, "planted", "overview")
    page.locator(".panel", has_text="Reward weighted sum").locator(".area").hover()
    tip = page.locator(".tip:visible")
    assert re.match(r"training step \d+", tip.inner_text()) and "reward" in tip.inner_text()


def test_a_dropped_samples_reason_and_worst_action_are_found_by_clicking(page: Any, address: str) -> None:
    go(page, address, "planted", "samples")
    page.get_by_role("button", name="dropped", exact=True).click()
    card = page.locator(".sample")
    expect(card).to_have_count(1)
    card.click()
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert "mismatch filter: one action's |p_sampler − p_actor| is 0.88, above τ = 0.1" in dialog.inner_text()
    assert "level 1, row 2, column 3, position 17" in dialog.inner_text()
    assert "the star is blue" in dialog.inner_text()
    # The mark lies on the third patch of the second row, of two rows of three.
    picture, mark = dialog.locator(".picture").bounding_box(), dialog.locator("rect.worst").bounding_box()
    assert mark["x"] + mark["width"] / 2 == pytest.approx(picture["x"] + picture["width"] * 5 / 6, abs=3)
    assert mark["y"] + mark["height"] / 2 == pytest.approx(picture["y"] + picture["height"] * 3 / 4, abs=3)
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_a_sample_that_training_dropped_says_why(page: Any, address: str) -> None:
    go(page, address, "trained", "samples")
    page.get_by_role("button", name="dropped", exact=True).click()
    page.wait_for_selector("[data-value=dropped][aria-pressed=true]")
    page.locator(".sample").first.click()
    page.get_by_role("dialog").wait_for()
    text = page.inner_text("dialog")
    assert re.search(r"entropy filter: the mean entropy of its actions is [\d.]+ nats, above [\d.]+", text)
    assert re.search(r"Worst action\s+level \d, row [12], column [123]", text)


def test_an_answers_worst_token_is_marked_and_words_stay_words(page: Any, address: str) -> None:
    go(page, address, "planted", "samples")
    page.locator(".sample", has_text="what is it?").click()
    page.get_by_role("dialog").wait_for()
    assert page.inner_text("dialog .answer-text") == "a blue <b>star</b>"
    assert page.inner_text("dialog mark") == "blue"


def test_new_steps_and_samples_arrive(page: Any, tmp_path: Path) -> None:
    run = run_with_samples(tmp_path / "growing")
    with served([run]) as address:
        go(page, address, "growing", "overview")
        assert "step 30" in page.inner_text("#state")
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(last | {"step": 31, "grad_norm": None}) + "\n")
        expect(page.locator("#state")).to_contain_text("step 31")
        expect(page.locator("#verdict")).to_contain_text("grad_norm is no finite number")
        assert "A number is not finite" in page.inner_text("#verdict")
        assert page.inner_text("#tabs .count") == "1"
        page.locator("#verdict a", has_text="curve").first.click()
        page.wait_for_selector('#page[data-page="stability"]')
        go(page, address, "growing", "samples")
        append_records(run, [SampleRecord(31, 0, "new", "a new one", reward=0.5)])
        expect(page.locator(".sample", has_text="a new one")).to_have_count(1)


def test_compare_shows_both_runs(page: Any, address: str) -> None:
    go(page, address, "trained", "compare")
    assert page.locator("#final thead th").all_inner_texts()[1:] == ["trained", "planted"]
    assert "algorithm.num_generations" in page.inner_text("#settings")
    reward = page.locator(".panel").first
    assert reward.locator("h3").inner_text() == "reward"
    assert reward.locator(".legend li").all_inner_texts() == ["trained", "planted"]
    page.select_option("#run", "planted")
    expect(page).to_have_url(f"{address}/#/planted/compare")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(browser: Any, address: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    go(page, address, "planted", "overview")
    page.wait_for_selector(".about")
    for place in (".about", ".panel h3", "#state", ".tile b"):
        assert contrast(page, place) > 4.5, place
    page.close()


def contrast(page: Any, place: str) -> float:
    """WCAG's ratio of an element's ink and the first ground behind it."""
    ink, ground = page.evaluate(
        """place => {
            const element = document.querySelector(place);
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        }""",
        place,
    )
    bright, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
