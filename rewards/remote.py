"""The reward ``remote``: asks one or several reward servers."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from dina.errors import DinaError
from dina.rewards.extras import require
from dina.rewards.pictures import to_base64_png
from dina.rewards.protocol import LogMetric, Score
from dina.rewards.wire import TOKEN_VARIABLE, ScoreAnswer, ScoreRequest, WireSample
from dina.rewards.worker import ToldError

LONGEST_PAUSE = 5.0
LEAST_TIME = 0.05
_RETRIED = {429, 500, 502, 503, 504}
_NOT_COLUMNS = {"log_extra"}


class RemoteReward:
    """Reward: what reward servers answer (``dina rewards serve``).

    A batch is cut into requests, and these go to the servers in turn, at the same time. A request that a server
    does not answer (no connection, no answer in time, 429, 5xx) goes to the next one; when all have been tried, after
    a pause that doubles. Any other answer is final. A request without an answer in ``timeout`` fails its samples.

    Args:
        servers: addresses such as ``http://127.0.0.1:8900``; one, or a list.
        reward: the reward's name on the server; may be left out where it has only one.
        timeout: seconds for a batch, retries included; keep it below the recipe's ``timeout`` of this reward.
        request_size: samples per request.
        backoff: seconds of the first pause.
        columns: send these columns only; by default all.
        token_variable: environment variable that holds the bearer token, if the servers want one.

    Raises:
        DinaError: an address is not of that form, or ``httpx`` is not installed.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        reward: str = "",
        timeout: float = 50.0,
        request_size: int = 32,
        backoff: float = 0.25,
        columns: Sequence[str] | None = None,
        token_variable: str = TOKEN_VARIABLE,
    ) -> None:
        require("httpx", "server", "the reward remote")
        self.servers = [servers] if isinstance(servers, str) else list(servers)
        for server in self.servers:
            parts = urlsplit(server)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise DinaError(f"the server {server!r} is not of the form http://HOST:PORT")
        if not self.servers or request_size < 1:
            raise DinaError("the reward remote needs at least one server, and a request_size of 1 or more")
        self.reward, self.timeout, self.request_size, self.backoff = reward, timeout, request_size, backoff
        self.columns = columns
        self.token_variable = token_variable
        self._turn = itertools.count()
        self._client: Any = None

    async def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[list[dict[str, Any]]],
        trainer_state: Any = None,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[Score | ToldError]:
        deadline = time.monotonic() + self.timeout
        samples = [self._sample(i, prompts[i], completions[i], columns) for i in range(len(prompts))]
        size = self.request_size
        step = getattr(trainer_state, "global_step", 0)
        answers = await asyncio.gather(
            *(self._ask(samples[at : at + size], step, deadline) for at in range(0, len(samples), size))
        )
        if log_metric is not None:
            log_metric("retries", float(sum(answer.retries for answer in answers)))
            for name, value in [pair for answer in answers for pair in answer.metrics.items()]:
                log_metric(name, value)
        return [entry for answer in answers for entry in answer.entries]

    def _sample(
        self, row: int, prompt: str, completion: Sequence[dict[str, Any]], columns: dict[str, Any]
    ) -> WireSample:
        content = completion[0]["content"]
        own = {name: values[row] for name, values in columns.items() if name not in _NOT_COLUMNS}
        image, prompt_images = own.pop("generated_images", None), own.pop("images", None)
        fields = {
            "prompt": prompt,
            "id": str(own.pop("id", None) or ""),
            "task": own.pop("task", None) or "t2i",
            "image": None if image is None else to_base64_png(image),
            "text": content if isinstance(content, str) and image is None else None,
            "prompt_image": to_base64_png(prompt_images[0]) if prompt_images else None,
            "completion_ids": own.pop("completion_ids", None) or [],
        }
        if self.columns is not None:
            own = {name: own[name] for name in self.columns if name in own}
        known = {name: value for name, value in own.items() if value is not None}
        for name, value in known.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ToldError(
                    f"the column {name!r} cannot be sent as JSON ({error}); name the columns to send in `columns`"
                ) from None
        return WireSample(**fields, columns=known)

    async def _ask(self, samples: Sequence[WireSample], step: int, deadline: float) -> _Reply:
        body = ScoreRequest(reward=self.reward, samples=list(samples), step=step).model_dump_json()
        start = next(self._turn)
        for attempt in itertools.count():
            server = self.servers[(start + attempt) % len(self.servers)]
            answer = await self._post(server, body, deadline)
            if isinstance(answer, ScoreAnswer):
                if len(answer.results) == len(samples):
                    return _Reply(_entries(answer), attempt, answer.metrics)
                answer = ToldError(
                    f"{server} answered with {len(answer.results)} results for {len(samples)} samples"
                )
            if isinstance(answer, ToldError):
                return _Reply([answer] * len(samples), attempt)
            round_ended = (attempt + 1) % len(self.servers) == 0
            pause = (
                min(self.backoff * 2 ** (attempt // len(self.servers)), LONGEST_PAUSE) if round_ended else 0.0
            )
            await asyncio.sleep(min(pause, max(deadline - time.monotonic(), 0.0)))
            # A try that has no time would only hide what went wrong before.
            if deadline - time.monotonic() < LEAST_TIME:
                reason = f"no answer within {self.timeout:g} s and {attempt + 1} tries; the last: {answer}"
                return _Reply([ToldError(reason)] * len(samples), attempt)
        raise AssertionError("unreachable")

    async def _post(self, server: str, body: str, deadline: float) -> ScoreAnswer | ToldError | str:
        """An answer, an error that is final, or in words why to try again."""
        import httpx

        left = max(deadline - time.monotonic(), 0.001)
        # One server that is slow must leave time for the others.
        limit = left if len(self.servers) == 1 else max(left / 2, 0.001)
        token = os.environ.get(self.token_variable)
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {token}"} if token else {}),
        }
        try:
            reply = await asyncio.wait_for(
                self._open().post(f"{server.rstrip('/')}/v1/score", content=body, headers=headers), limit
            )
        except TimeoutError:
            return f"{server} did not answer within {limit:.3g} s"
        except httpx.TransportError as error:
            return f"{server}: {type(error).__name__} {error}".rstrip()
        except httpx.HTTPError as error:
            return ToldError(f"{server}: {type(error).__name__} {error}")
        if reply.status_code in _RETRIED:
            return f"{server} answered {reply.status_code} {reply.text:.100}"
        if reply.status_code != 200:
            return ToldError(f"{server} answered {reply.status_code} {reply.text:.200}")
        try:
            return ScoreAnswer.model_validate_json(reply.content)
        except ValidationError:
            return ToldError(
                f"{server} answered with something that is no list of results: {reply.text!r:.100}"
            )

    def _open(self) -> Any:
        """The connections; made where they are used, for they belong to the event loop."""
        if self._client is None:
            import httpx

            local = all(
                urlsplit(server).hostname in ("127.0.0.1", "::1", "localhost") for server in self.servers
            )
            self._client = httpx.AsyncClient(timeout=None, trust_env=not local)
        return self._client


@dataclass
class _Reply:
    """The entries of one request, how often it was sent again, and what the reward logged."""

    entries: Sequence[Score | ToldError]
    retries: int
    metrics: dict[str, float] = field(default_factory=dict)


def _entries(answer: ScoreAnswer) -> list[Score | ToldError]:
    return [
        Score(result.score, parts=result.parts) if result.error is None else ToldError(result.error)
        for result in answer.results
    ]
