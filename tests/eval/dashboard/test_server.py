"""What the dashboard answers, to whom, and what it never gives out."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dina.errors import DinaError
from dina.eval.dashboard.live import find_runs
from dina.eval.dashboard.server import listen
from dina.eval.sample_log import picture_path
from tests.eval.dashboard.world import run_with_samples, served


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_with_samples(folder / "one")
    run_with_samples(folder / "two")
    (folder / "secret.png").write_bytes(b"secret")
    (folder / "one" / "samples" / "step_000030" / "099.png").symlink_to(folder / "secret.png")
    (folder / "one" / "samples" / "step_000031").symlink_to("/etc")
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with served([runs]) as address:
        yield address


def get(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Sends ``path`` as it is: an ordinary client would take the dots out of it."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}


def data(address: str, path: str) -> Any:
    status, body, _ = get(address, path)
    assert status == 200, (path, status, body)
    return json.loads(body)


def test_runs_are_listed_with_their_state_and_health(address: str) -> None:
    one, two = data(address, "/api/runs")
    assert (one["name"], two["name"]) == ("one", "two")
    assert (one["step"], one["complete"], one["state"]) == (30, True, "running")
    assert one["health"] in ("well", "look", "sick")


@pytest.mark.parametrize("page", ["overview", "stability", "speed"])
def test_every_panel_says_what_it_shows_over_what_and_what_is_healthy(address: str, page: str) -> None:
    sections = data(address, f"/api/runs/one/{page}")["sections"]
    panels = [panel for section in sections for panel in section["panels"]]
    assert panels
    for panel in panels:
        assert panel["html"].startswith('<figure class="chart"')
        assert panel["shows"] and panel["over"] and panel["healthy"] and panel["metric"]


def test_a_range_of_steps_is_cut_out(address: str) -> None:
    sections = data(address, "/api/runs/one/overview?first=21&last=25")["sections"]
    reward = next(p for s in sections for p in s["panels"] if p["title"] == "Reward")
    assert (
        "&#34;x&#34;: [&#34;21&#34;, &#34;22&#34;, &#34;23&#34;, &#34;24&#34;, &#34;25&#34;]"
        in reward["html"]
    )


def test_samples_are_paged_filtered_and_shown_in_full(address: str) -> None:
    page = data(address, "/api/runs/one/samples?only=dropped")
    assert page["total"] == 1
    (card,) = page["samples"]
    assert card["verdict"]["title"] == "dropped" and card["difference"] == 0.88
    full = data(address, f"/api/runs/one/samples/{card['number']}")
    assert full["verdict"]["reasons"] == [
        "mismatch filter: one action's |p_sampler − p_actor| is 0.88, above τ = 0.1"
    ]
    assert (full["worst"]["row"], full["worst"]["column"]) == (1, 2)
    assert isinstance(full["seed"], str)
    first = data(address, "/api/runs/one/samples?limit=4")
    second = data(address, "/api/runs/one/samples?limit=4&offset=4")
    assert first["total"] == second["total"] == 21
    assert not {c["number"] for c in first["samples"]} & {c["number"] for c in second["samples"]}
    status, picture, headers = get(address, f"/api/runs/one/pictures/{picture_path(30, 10)}")
    assert status == 200 and picture.startswith(b"\x89PNG") and headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/runs/nothing/overview", 404),
        ("/api/runs/one/nothing", 404),
        ("/api/runs/one/samples/99999", 404),
        ("/api/runs/one/samples?order=best", 400),
        ("/api/runs/one/samples?offset=-1", 400),
        ("/api/runs/one/overview?first=x", 400),
        ("/nothing", 404),
    ],
)
def test_wrong_questions_get_an_answer_in_words(address: str, path: str, status: int) -> None:
    got, body, _ = get(address, path)
    assert got == status and json.loads(body)["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/runs/one/pictures/../config.yaml",
        "/api/runs/one/pictures/step_000030/../../config.yaml",
        "/api/runs/one/pictures/..%2f..%2fconfig.yaml/x",
        "/api/runs/one/pictures/%2e%2e/config.yaml",
        "/api/runs/one/pictures/step_000030/%2e%2e%2f%2e%2e%2f%2e%2e%2fsecret.png",
        "/api/runs/one/pictures/step_000030/..%5c..%5csecret.png",
        "/api/runs/one/pictures/step_000030/099.png",
        "/api/runs/one/pictures/step_000031/passwd",
        "/api/runs/one/pictures//etc/passwd",
        "/api/runs/..%2fone/overview",
        "/static/../pages.py",
        "/static/..%2fpages.py",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/../../../../etc/passwd",
        "/report.css/../../../pyproject.toml",
    ],
)
def test_no_file_outside_of_the_runs_is_given_out(address: str, path: str) -> None:
    status, body, _ = get(address, path)
    assert status in (400, 404), (path, status)
    assert b"secret" not in body and b"root:" not in body and b"def " not in body and b"[project]" not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.7", "localhost.evil.example", "[::2]", ""]
)
def test_another_name_is_turned_away(address: str, host: str) -> None:
    status, body, _ = get(address, "/api/runs", Host=host)
    assert status == 421 and b"one" not in body.replace(b"only", b"")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:99", "[::1]:8901"])
def test_loopback_names_are_let_in(address: str, host: str) -> None:
    assert get(address, "/api/runs", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/runs", f"/api/runs/one/pictures/{picture_path(30, 10)}"])
def test_nothing_can_be_changed(address: str, method: str, path: str) -> None:
    assert get(address, path, method)[0] == 405


def test_other_pages_are_kept_out(address: str) -> None:
    for path in ("/", "/api/runs", "/nothing"):
        _, _, headers = get(address, path, Origin="http://evil.example")
        assert "access-control-allow-origin" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy
            and "frame-ancestors 'none'" in policy
            and "script-src 'self'" in policy
        )


def test_it_listens_on_loopback_and_nowhere_else() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        with pytest.raises(DinaError, match="ssh -L"):
            listen(host, 0)
    with listen("localhost", 0) as first:
        assert first.getsockname()[0] == "127.0.0.1"
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(DinaError, match="--port 0 takes a free one"):
                listen("127.0.0.1", other.getsockname()[1])


def test_nothing_of_the_run_is_written(runs: Path, address: str) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    for path in (
        "/api/runs",
        "/api/runs/one/overview",
        "/api/runs/one/samples",
        "/api/compare",
        "/api/metrics?run=one",
    ):
        assert get(address, path)[0] == 200
    assert before == {path: os.stat(path).st_mtime_ns for path in runs.rglob("*") if path.is_file()}


def test_a_folder_of_runs_stands_for_them_and_names_are_distinct(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "reward": 1}\n')
    assert [run.name for run in find_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"])] == [
        "a·run",
        "b·run",
        f"{tmp_path.name}·c",
    ]
    assert [run.name for run in find_runs([tmp_path])] == ["c"]
