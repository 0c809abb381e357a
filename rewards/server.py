"""A server for rewards that need another machine, another environment or another set of versions.

It speaks JSON (``dina.rewards.wire``) and unpickles nothing. Rewards run as in a training run: in threads or
processes of their own, with the same time-outs and the same rules for failures.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dina.errors import DinaError, advice
from dina.rewards.batch import RewardBatch, RewardSample
from dina.rewards.pictures import MAX_PIXELS, from_base64_png
from dina.rewards.protocol import RewardSpec
from dina.rewards.running import RunningReward
from dina.rewards.wire import TOKEN_VARIABLE, ScoreAnswer, ScoreRequest, WireResult, WireSample, as_json
from dina.rollout.protocol import Prompt


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        request_bytes: size of its body.
        picture_pixels: width times height of each picture.
        samples: how many at once.
        waiting: requests that may wait for one reward; further ones are sent away with 503.
        upload_seconds: how long a request may take to arrive.
        connections: at once.
    """

    request_bytes: int = 64 * 2**20
    picture_pixels: int = MAX_PIXELS
    samples: int = 512
    waiting: int = 16
    upload_seconds: float = 60.0
    connections: int = 64


class _Served:
    """One reward, which scores one request at a time."""

    def __init__(self, spec: RewardSpec) -> None:
        self.running = RunningReward(spec)
        self.lock = asyncio.Lock()
        self.waiting = 0

    def score(self, request: ScoreRequest, max_pixels: int) -> ScoreAnswer:
        results = [WireResult() for _ in request.samples]
        good: list[tuple[int, RewardSample]] = []
        for position, sample in enumerate(request.samples):
            try:
                good.append((position, _read(sample, position, max_pixels)))
            except ValueError as error:
                results[position].error = str(error)
        self.running.start(RewardBatch([sample for _, sample in good], request.step))
        self.running.finish()
        for row, (position, _) in enumerate(good):
            result = results[position]
            result.score = self.running.scores[row]
            result.parts = {key: as_json(part) for key, part in (self.running.parts[row] or {}).items()}
        for failure in self.running.failures:
            results[good[failure.sample_index][0]].error = failure.reason
        prefix = f"rewards/{self.running.spec.label}/"
        metrics = {name.removeprefix(prefix): value for name, value in self.running.logged().items()}
        return ScoreAnswer(results=results, metrics=metrics)


class RewardServer:
    """The ASGI application.

    Args:
        token: what clients must send as ``Authorization: Bearer``; ``None`` lets everyone in.

    Raises:
        DinaError: a reward cannot be set up, or two have one name.
    """

    def __init__(
        self, specs: Sequence[RewardSpec], token: str | None = None, limits: Limits | None = None
    ) -> None:
        self.token = token
        self.limits = limits or Limits()
        self.rewards: dict[str, _Served] = {}
        for spec in specs:
            if spec.label in self.rewards:
                raise DinaError(f"two rewards are called {spec.label!r}; give one of them another name")
            self.rewards[spec.label] = _Served(spec)
        routes = [
            Route("/health", self._health),
            Route("/v1/rewards", self._list),
            Route("/v1/score", self._score, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _explain})

    def close(self) -> None:
        for served in self.rewards.values():
            served.running.close()

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _list(self, request: Request) -> Response:
        self._let_in(request)
        return JSONResponse({name: {"requires": r.running.requires} for name, r in self.rewards.items()})

    async def _score(self, request: Request) -> Response:
        self._let_in(request)
        asked = await run_in_threadpool(self._parse, await self._body(request))
        served = self._find(asked.reward)
        if served.waiting >= self.limits.waiting:
            raise HTTPException(503, "too many requests are waiting; try again", {"Retry-After": "1"})
        served.waiting += 1
        try:
            async with served.lock:
                answer = await run_in_threadpool(served.score, asked, self.limits.picture_pixels)
        finally:
            served.waiting -= 1
        return Response(answer.model_dump_json(), media_type="application/json")

    def _let_in(self, request: Request) -> None:
        if self.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.encode("utf-8"), self.token.encode("utf-8"))
        if scheme.lower() != "bearer" or not right:
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        limit = self.limits.request_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for chunk in request.stream():  # a declared length may be missing or a lie
                    body += chunk
                    if len(body) > limit:
                        raise HTTPException(413, f"the request is larger than {limit} bytes")
        except TimeoutError:
            raise HTTPException(408, "the request came too slowly") from None
        return bytes(body)

    def _parse(self, body: bytes) -> ScoreRequest:
        try:
            asked = ScoreRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise HTTPException(422, f"{place}: {first['msg']}" if place else first["msg"]) from None
        if len(asked.samples) > self.limits.samples:
            raise HTTPException(413, f"{len(asked.samples)} samples; at most {self.limits.samples} at once")
        return asked

    def _find(self, name: str) -> _Served:
        if not name and len(self.rewards) == 1:
            return next(iter(self.rewards.values()))
        if name not in self.rewards:
            raise HTTPException(404, f"no reward {name!r} here; {advice(name, self.rewards)}")
        return self.rewards[name]


def check_reach(host: str, token: str | None) -> None:
    """Raises: DinaError: other machines could reach a server at ``host``, and there is no token."""
    if token is None and not is_loopback(host):
        raise DinaError(
            f"on {host} other machines can reach the server; set {TOKEN_VARIABLE} to a secret, or use 127.0.0.1"
        )


def serve(server: RewardServer, host: str = "127.0.0.1", port: int = 8900) -> None:
    """Serves until it is stopped.

    Raises:
        DinaError: other machines could reach it and there is no token.
    """
    check_reach(host, server.token)
    uvicorn.run(
        server.app,
        host=host,
        port=port,
        log_level="warning",
        limit_concurrency=server.limits.connections,
        timeout_graceful_shutdown=10,
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _read(sample: WireSample, position: int, max_pixels: int) -> RewardSample:
    prompt_image = None if sample.prompt_image is None else from_base64_png(sample.prompt_image, max_pixels)
    prompt = Prompt(
        id=sample.id or str(position),
        text=sample.prompt,
        task=sample.task,
        image=prompt_image,
        columns=dict(sample.columns),
    )
    image = None if sample.image is None else from_base64_png(sample.image, max_pixels)
    return RewardSample(prompt, image, sample.text, sample.completion_ids)


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: Mapping[str, str] | None = error.headers
    return JSONResponse({"error": error.detail}, error.status_code, headers)
