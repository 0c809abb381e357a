"""The dashboard's web server: this machine only, reading only, nothing but the runs' own files.

A page of another site must not get at it through the visitor's browser either, so the name that a request comes for
has to be one of this machine's loopback (DNS rebinding), and nothing may be embedded elsewhere.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dina.errors import DinaError
from dina.eval.dashboard import pages
from dina.eval.dashboard.comparing import before_after, compare_page
from dina.eval.dashboard.live import LiveRun
from dina.eval.metric_table import Page
from dina.eval.report import TEMPLATES
from dina.eval.sample_log import Only, Order

STATIC = Path(__file__).with_name("static")
PORT = 8901
LOOPBACK = ("127.0.0.1", "::1")
_NAMES = {*LOOPBACK, "localhost"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Dashboard:
    """The ASGI application on some runs."""

    def __init__(self, runs: Sequence[LiveRun]) -> None:
        self.runs = {run.name: run for run in runs}
        api = [
            Route("/runs", self._list),
            Route("/runs/{run}/samples", self._samples),
            Route("/runs/{run}/samples/{number:int}", self._sample),
            Route("/runs/{run}/pictures/{step}/{name}", self._picture),
            Route("/runs/{run}/pairs", self._pairs),
            Route("/runs/{run}/{page}", self._page),
            Route("/compare", self._compare),
            Route("/metrics", self._reference),
        ]
        routes = [
            Route("/", _file(STATIC / "index.html")),
            Route("/report.css", _file(TEMPLATES / "report.css")),
            Route("/report.js", _file(TEMPLATES / "report.js")),
            Mount("/static", StaticFiles(directory=STATIC)),
            Mount("/api", routes=api),
        ]
        self.app = _Guard(Starlette(routes=routes, exception_handlers={HTTPException: _explain}))

    def _list(self, request: Request) -> Response:
        lines = []
        for run in self.runs.values():
            with run.lock:
                run.refresh()
                lines.append(pages.run_line(run))
        return JSONResponse(lines)

    def _page(self, request: Request) -> Response:
        run, page = self._run(request), request.path_params["page"]
        if page not in get_args(Page):
            raise HTTPException(404, f"there is no page {page!r}")
        with run.lock:
            run.refresh()
            return JSONResponse(
                pages.curve_page(run, page, _number(request, "first"), _number(request, "last"))
            )

    def _samples(self, request: Request) -> Response:
        run = self._run(request)
        order, only = _word(request, "order", Order, "step"), _word(request, "only", Only, "all")
        offset, limit = _number(request, "offset") or 0, _number(request, "limit") or pages.PER_PAGE
        step = _number(request, "step")
        with run.lock:
            run.refresh()
            steps = None if step is None else (step, step)
            return JSONResponse(
                pages.sample_page(run, order, only, offset, min(limit, pages.PER_PAGE), steps)  # type: ignore[arg-type]
            )

    def _sample(self, request: Request) -> Response:
        run = self._run(request)
        with run.lock:
            run.refresh()
            found = pages.sample(run, request.path_params["number"])
        if found is None:
            raise HTTPException(404, "there is no such sample")
        return JSONResponse(found)

    def _picture(self, request: Request) -> Response:
        run = self._run(request)
        file = run.samples.picture_file(f"{request.path_params['step']}/{request.path_params['name']}")
        if file is None:
            raise HTTPException(404, "there is no such picture")
        return FileResponse(file, media_type="image/png")

    def _pairs(self, request: Request) -> Response:
        return JSONResponse(before_after(self._run(request)))

    def _compare(self, request: Request) -> Response:
        asked = request.query_params.getlist("run")
        chosen = [self.runs[name] for name in asked if name in self.runs] or list(self.runs.values())
        with ExitStack() as locks:
            for run in chosen:
                locks.enter_context(run.lock)
                run.refresh()
            return JSONResponse(compare_page(chosen))

    def _reference(self, request: Request) -> Response:
        run = self.runs.get(request.query_params.get("run", ""))
        with run.lock if run else nullcontext():
            return JSONResponse(pages.reference(run))

    def _run(self, request: Request) -> LiveRun:
        run = self.runs.get(request.path_params["run"])
        if run is None:
            raise HTTPException(404, f"there is no run {request.path_params['run']!r}")
        return run


def serve(
    runs: Sequence[LiveRun], host: str = "127.0.0.1", port: int = PORT, ready: Callable[[str], Any] = print
) -> None:
    """Serves until it is stopped.

    Args:
        port: 0 takes a free one.
        ready: is given the address once the server listens.

    Raises:
        DinaError: ``host`` is not this machine's loopback, or the port is taken.
    """
    with listen(host, port) as listener:
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        ready(f"http://{shown}:{number}/")
        config = uvicorn.Config(Dashboard(runs).app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket on this machine's loopback and nowhere else.

    Raises:
        DinaError: as for ``serve``.
    """
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    if host not in LOOPBACK:
        raise DinaError(
            f"the dashboard listens on 127.0.0.1 or ::1 only, not on {host}; to look from elsewhere, forward the port: "
            f"ssh -L {port}:127.0.0.1:{port} MACHINE"
        )
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise DinaError(f"port {port} cannot be had ({error.strerror}); --port 0 takes a free one") from None
    return listener


class _Guard:
    """Answers for loopback names alone, and adds the headers that keep other pages out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if _host_name(Headers(scope=scope).get("host", "")) not in _NAMES:
            answer: ASGIApp = PlainTextResponse(
                "the dashboard answers to 127.0.0.1, ::1 and localhost only", 421
            )
        elif scope["method"] not in ("GET", "HEAD"):
            answer = PlainTextResponse("the dashboard only shows things", 405, {"Allow": "GET, HEAD"})
        else:
            answer = self.app
        await answer(scope, receive, send_guarded)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _file(path: Path) -> Callable[[Request], Response]:
    return lambda request: FileResponse(path)


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise HTTPException(400, f"{name} is no number")
    return int(text)


def _word(request: Request, name: str, kind: Any, default: str) -> str:
    word = request.query_params.get(name, default)
    if word not in get_args(kind):
        raise HTTPException(400, f"{name} is none of {', '.join(get_args(kind))}")
    return word


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
