"""A reward server and its client over real sockets of this machine."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from dina.errors import DinaError
from dina.rewards.pictures import to_base64_png
from dina.rewards.protocol import RewardSpec, SuiteResult
from dina.rewards.remote import RemoteReward
from dina.rewards.server import Limits, RewardServer, is_loopback, serve
from dina.rewards.suite import RewardSuite
from tests.rewards.samples import GREY, answer, picture

HERE = __name__
pytestmark = pytest.mark.timeout(600)


def mean(generated_images, log_extra=None, log_metric=None, **columns):
    log_extra("contrast", [float(np.asarray(image).std()) for image in generated_images])
    log_extra("oddity", [float("nan")] * len(generated_images))
    log_metric("calls", 1.0)
    return [float(np.asarray(image).mean()) / 255 for image in generated_images]


def echo(prompts, completions, mark=None, trainer_state=None, **columns):
    said = [completion[0]["content"] for completion in completions]
    return [len(str(text)) + trainer_state.global_step for text in said] if mark is None else list(mark)


def fails_on_mark_1(mark):
    if 1 in mark:
        raise RuntimeError("mark 1")
    return [1.0] * len(mark)


def hangs(prompts, **columns):
    time.sleep(1.5)
    return [1.0] * len(prompts)


@contextmanager
def served(*names: str, port: int = 0, **fields) -> Iterator[str]:
    """The address of a server with these rewards of this module."""
    options = {key: fields.pop(key) for key in ("token", "limits") if key in fields}
    server = RewardServer([RewardSpec(f"{HERE}:{name}", **fields) for name in names], **options)
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(30)
        server.close()


@contextmanager
def answering(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that does what ``reply`` does; the request's body is in ``body``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            self.body = self.rfile.read(int(self.headers["Content-Length"]))
            reply(self)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def saying(status: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ask(servers, samples, step: int = 0, **kwargs) -> SuiteResult:
    """What the reward ``remote`` says, used as a recipe uses it."""
    kwargs = {"timeout": 60.0, "backoff": 0.02, **kwargs}
    suite = RewardSuite([RewardSpec("remote", timeout=120, kwargs={"servers": servers, **kwargs})])
    try:
        return suite.score(samples, step)
    finally:
        suite.close()


def post(url: str, body, path: str = "/v1/score", **headers) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url + path, content=content, headers=headers, trust_env=False, timeout=60)


def test_scores_sub_scores_and_metrics_come_back():
    white = np.full((8, 8, 3), 255, np.uint8)
    with served("mean") as url:
        result = ask(url, [picture(white), picture(GREY), answer("3")])
    assert result.per_reward["remote"] == [1.0, pytest.approx(200 / 255), None]
    assert result.failures == []
    assert result.parts["remote"][0] == {"contrast": 0.0, "oddity": None}
    metrics = result.metrics()
    assert metrics["rewards/remote/calls"] == 1.0 and metrics["rewards/remote/retries"] == 0.0


def test_texts_columns_and_the_step_arrive_and_a_long_batch_is_cut_up():
    with served("echo", batch_size=2) as url, served("echo") as other:
        assert ask(url, [answer("three"), answer("")], step=10).total == [15.0, 10.0]
        samples = [picture(mark=float(i), tag="counting", include=[{"class": "star"}]) for i in range(7)]
        assert ask([url, other], samples, request_size=3).total == [float(i) for i in range(7)]


def test_one_bad_sample_does_not_hurt_the_others():
    with served("fails_on_mark_1") as url:
        result = ask(url, [picture(mark=i) for i in range(3)])
    assert result.total == [1.0, None, 1.0]
    [failure] = result.failures
    assert failure.sample_index == 1 and "RuntimeError: mark 1" in failure.reason


def test_a_reward_that_hangs_on_the_server_fails_there_and_says_so():
    with served("hangs", timeout=0.2) as url:
        result = ask(url, [picture()])
    assert result.total == [None]
    assert result.failures[0].reason == "timed out after 0.2 s"


def test_the_token_is_wanted_and_health_is_free(monkeypatch):
    with served("mean", token="secret") as url:
        assert httpx.get(url + "/health", trust_env=False).json() == {"status": "ok"}
        assert httpx.get(url + "/v1/rewards", trust_env=False).status_code == 401
        monkeypatch.delenv("DINA_REWARD_TOKEN", raising=False)
        refused = ask(url, [picture()])
        assert refused.total == [None] and "401" in refused.failures[0].reason
        monkeypatch.setenv("DINA_REWARD_TOKEN", "secret")
        assert ask(url, [picture()]).failures == []
        given = {"Authorization": "Bearer secret"}
        assert httpx.get(url + "/v1/rewards", headers=given, trust_env=False).json() == {
            "mean": {"requires": ["generated_images"]}
        }
        foreign = {"Authorization": b"Bearer s\xc3\xa9cret"}
        assert (
            httpx.post(url + "/v1/score", headers=foreign, content=b"{}", trust_env=False).status_code == 401
        )


def test_requests_that_are_wrong_or_too_large_are_refused():
    limits = Limits(request_bytes=20_000, samples=2, picture_pixels=100)
    with served("mean", "echo", limits=limits) as url:
        assert post(url, b"\x80\x04pickle").status_code == 422
        assert "samples" in post(url, {"reward": "mean"}).json()["error"]
        assert post(url, {"reward": "mean", "samples": [{}] * 3}).status_code == 413
        assert post(url, {"reward": "mean", "samples": [{"prompt": "x" * 30_000}]}).status_code == 413
        assert "did you mean 'mean'" in post(url, {"reward": "maen", "samples": []}).json()["error"]
        assert post(url, {"samples": []}).status_code == 404
        large = to_base64_png(np.zeros((20, 20, 3), np.uint8))
        small = to_base64_png(np.zeros((10, 10, 3), np.uint8))
        results = post(url, {"reward": "mean", "samples": [{"image": large}, {"image": small}]}).json()[
            "results"
        ]
        assert "20x20, more than the 100 pixels allowed" in results[0]["error"] and results[1]["score"] == 0.0


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# Pillow raises an IndexError for it.
EMPTY_PROFILE = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(4)))
    + chunk(b"iCCP", b"")
    + chunk(b"IEND", b"")
)


def test_pictures_of_every_kind_are_read_or_refused_with_a_reason():
    deep = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    good = {
        "1x1": (Image.new("RGB", (1, 1), (255, 255, 255)), 1.0),
        "grey": (Image.new("L", (4, 4), 51), 0.2),
        "16 bit": (deep, 1.0),
        "palette": (Image.new("RGB", (4, 4), (0, 0, 0)).convert("P"), 0.0),
        "clear": (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 1.0),
        "RGBA": (Image.new("RGBA", (4, 4), (51, 51, 51, 255)), 0.2),
    }
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG")
    bad = {
        png(Image.new("1", (8000, 8000))): "8000x8000, more than",
        whole[: len(whole) // 2 // 4 * 4]: "no PNG that can be read",
        base64.b64encode(jpeg.getvalue()).decode(): "no PNG that can be read",
        "not base64!": "not base64",
        "": "no PNG that can be read",
        base64.b64encode(EMPTY_PROFILE).decode(): "no PNG that can be read",
    }
    samples = [{"image": png(image)} for image, _ in good.values()] + [{"image": text} for text in bad]
    with served("mean") as url:
        results = post(url, {"samples": samples}).json()["results"]
    for (name, (_, wanted)), result in zip(good.items(), results, strict=False):
        assert result["score"] == pytest.approx(wanted, abs=0.01), name
    for words, result in zip(bad.values(), results[len(good) :], strict=True):
        assert words in result["error"]


@pytest.mark.parametrize("prompt", ["", "x" * 100_000, 'nul \0, quote ", 星 🌟'])
def test_prompts_of_every_length_arrive(prompt: str):
    with served("mean") as url:
        assert ask(url, [picture(prompt=prompt)]).failures == []


def test_a_server_that_is_down_is_passed_over_and_all_down_is_a_failure():
    dead = f"http://127.0.0.1:{free_port()}"
    with served("echo") as url:
        result = ask([dead, url], [picture(mark=float(i)) for i in range(4)], request_size=1)
    assert result.total == [0.0, 1.0, 2.0, 3.0]
    assert result.metrics()["rewards/remote/retries"] == 2.0
    result = ask(dead, [picture()], timeout=0.5)
    assert result.total == [None]
    assert (
        "no answer within 0.5 s" in result.failures[0].reason and "ConnectError" in result.failures[0].reason
    )


def test_a_server_that_restarts_is_waited_for(monkeypatch):
    """One client: it finds its connection dead, then nobody at home, then the new server."""
    port, tried = free_port(), threading.Event()
    post_once = RemoteReward._post

    async def noted(*arguments):
        answer = await post_once(*arguments)
        if isinstance(answer, str):
            tried.set()
        return answer

    monkeypatch.setattr(RemoteReward, "_post", noted)
    kwargs = {"servers": f"http://127.0.0.1:{port}", "timeout": 60.0, "backoff": 0.02}
    suite = RewardSuite([RewardSpec("remote", timeout=120, kwargs=kwargs)])
    with served("echo", port=port):
        assert suite.score([picture(mark=1.0)]).total == [1.0]
    with ExitStack() as later:

        def start() -> None:
            tried.wait(60)
            later.enter_context(served("echo", port=port))

        thread = threading.Thread(target=start)
        thread.start()
        result = suite.score([picture(mark=2.0)])
        thread.join()
        suite.close()
    assert result.total == [2.0]
    assert result.metrics()["rewards/remote/retries"] >= 1.0


def test_a_slow_server_leaves_time_for_another_and_has_an_end_alone():
    with answering(lambda handler: time.sleep(5.0)) as slow:
        with served("echo") as url:
            assert ask([slow, url], [picture(mark=1.0)], timeout=8.0).total == [1.0]
        start = time.monotonic()
        result = ask(slow, [picture()], timeout=0.3)
    assert time.monotonic() - start < 4.0
    assert result.total == [None] and "did not answer within" in result.failures[0].reason


def test_busy_answers_are_retried_and_refusals_are_not():
    seen: list[int] = []

    def busy_twice(handler: BaseHTTPRequestHandler) -> None:
        seen.append(1)
        status, body = (503, b"busy") if len(seen) < 3 else (200, b'{"results": [{"score": 0.5}]}')
        saying(status, body)(handler)

    with answering(busy_twice) as url:
        assert ask(url, [picture()]).total == [0.5]
    assert len(seen) == 3

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        seen.append(1)
        saying(403, b"no")(handler)

    with answering(refuse) as url:
        assert "403" in ask(url, [picture()]).failures[0].reason
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "no list of results"),
        (b"\x80\x04\x95", "no list of results"),
        (b'{"results": [{"score": NaN}]}', "no list of results"),
        (b'{"results": [{"score": "high"}]}', "no list of results"),
        (b'{"results": []}', "0 results for 1 samples"),
    ],
)
def test_garbage_is_a_failure_and_never_a_score(body: bytes, words: str):
    with answering(saying(200, body)) as url:
        result = ask(url, [picture()])
    assert result.total == [None] and words in result.failures[0].reason


def test_a_column_that_json_cannot_hold_is_named():
    with served("mean") as url:
        result = ask(url, [picture(when=object())])
        assert "the column 'when' cannot be sent" in result.failures[0].reason
        assert ask(url, [picture(when=object(), mark=1)], columns=["mark"]).failures == []


def test_other_machines_are_only_let_in_with_a_token():
    server = RewardServer([RewardSpec(f"{HERE}:mean")])
    with pytest.raises(DinaError, match="set DINA_REWARD_TOKEN"):
        serve(server, "0.0.0.0")
    server.close()
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("example.org")


@pytest.mark.parametrize("servers", ["127.0.0.1:8900", "ftp://x", []])
def test_addresses_are_checked(servers):
    with pytest.raises(DinaError, match="form http://HOST:PORT|at least one server"):
        RewardSuite([RewardSpec("remote", kwargs={"servers": servers})])


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_is_unpickled(tmp_path):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    as_picture = base64.b64encode(trap).decode()
    with served("mean") as url:
        for kind in ("application/json", "application/octet-stream", "application/python-pickle"):
            assert post(url, trap, **{"Content-Type": kind}).status_code == 422
        [result] = post(url, {"samples": [{"image": as_picture}]}).json()["results"]
        assert "no PNG that can be read" in result["error"]
    with answering(saying(200, trap)) as url:
        assert ask(url, [picture()]).total == [None]
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()
