"""A vision language model behind an OpenAI-compatible endpoint (vLLM, SGLang, a provider) as a judge of pictures."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from dina.rewards.alignment.formats import JudgeError, Judgement, ScoreFormat, make_format
from dina.rewards.alignment.judge import scores_of
from dina.rewards.extras import require
from dina.rewards.pictures import to_base64_png
from dina.rewards.protocol import LogExtra

_RETRIED = {408, 409, 429, 500, 502, 503, 504}
_TOP_LOGPROBS = 20


class VLMEndpointReward:
    """Reward: how well a served vision language model finds that the picture shows its prompt, 0 to 1.

    Requests of a batch run at the same time. One that fails after its retries, or an answer without a score, is a
    failed score with its reason logged; if every request of a batch fails, the first error is raised.

    Args:
        model: the name under which the endpoint serves the model.
        base_url: up to and including ``/v1``.
        form: ``expected`` (one token with log-probabilities), ``unified_reward`` or ``tagged``, or a
            :class:`ScoreFormat`.
        instruction: a question of your own, with ``{prompt}`` in it.
        constrain: force ``expected`` answers to be a label by vLLM's structured outputs; other servers may refuse it.
        concurrency: requests at the same time.
        timeout: seconds for one request.
        retries: further tries after a time-out, a refused connection, or a status that may pass (429, 5xx).
        api_key_env: environment variable with the key, if there is one; keys do not belong into recipes.
        extra_body: further fields of each request.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://127.0.0.1:8000/v1",
        form: str | ScoreFormat = "expected",
        instruction: str | None = None,
        constrain: bool = False,
        concurrency: int = 16,
        timeout: float = 30.0,
        retries: int = 2,
        api_key_env: str = "OPENAI_API_KEY",
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        require("httpx", "judge", "the reward vlm_endpoint")
        if concurrency < 1 or retries < 0 or timeout <= 0:
            raise ValueError("concurrency must be at least 1, retries at least 0 and timeout above 0")
        self.model, self.url = model, base_url.rstrip("/") + "/chat/completions"
        self.form, self.constrain = make_format(form, instruction), constrain
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.api_key_env, self.extra_body = api_key_env, dict(extra_body or {})

    async def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | JudgeError | None]:
        import httpx

        key = os.environ.get(self.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limit = asyncio.Semaphore(self.concurrency)
        rows = [i for i, image in enumerate(generated_images) if image is not None]
        async with httpx.AsyncClient(timeout=self.timeout, headers=headers) as client:

            async def judge(row: int) -> Judgement:
                async with limit:
                    picture = generated_images[row]
                    assert picture is not None
                    return await self._judge(client, prompts[row], picture)

            answers = await asyncio.gather(*map(judge, rows), return_exceptions=True)
        found: dict[int, Judgement] = {}
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, JudgeError):
                raise answer
            found[row] = Judgement(None, str(answer)) if isinstance(answer, JudgeError) else answer
        errors = [answer for answer in answers if isinstance(answer, JudgeError)]
        if errors and len(errors) == len(rows):
            raise errors[0]
        return scores_of([found.get(i) for i in range(len(prompts))], log_extra)

    async def _judge(self, client: Any, prompt: str, picture: Image.Image) -> Judgement:
        answer = await self._post(client, self._request(prompt, picture))
        try:
            choice = answer["choices"][0]
            if self.form.labels:
                entries = choice["logprobs"]["content"][0]["top_logprobs"]
                return self.form.weigh(_probabilities(entries))
            return self.form.read(choice["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            wanted = "log-probabilities" if self.form.labels else "a message"
            raise JudgeError(
                f"{self.url} answered without {wanted} ({type(error).__name__}: {error})"
            ) from error

    def _request(self, prompt: str, picture: Image.Image) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": data_url(picture)}},
            {"type": "text", "text": self.form.question(prompt)},
        ]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.form.max_tokens,
        }
        if self.form.labels:
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
            if self.constrain:
                body["structured_outputs"] = {"choice": list(self.form.labels)}
        return body | self.extra_body

    async def _post(self, client: Any, body: Mapping[str, Any]) -> Any:
        import httpx

        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(0.5 * 2 ** (attempt - 1))
            try:
                response = await client.post(self.url, json=body)
            except httpx.HTTPError as error:
                problem = f"{self.url} cannot be reached: {type(error).__name__} {error}".rstrip()
                continue
            if response.status_code == 200:
                try:
                    return response.json()
                except ValueError as error:
                    raise JudgeError(f"{self.url} answered with no JSON: {response.text!r:.200}") from error
            problem = f"{self.url} answered {response.status_code}: {' '.join(response.text.split())[:200]}"
            if response.status_code not in _RETRIED:
                break
        raise JudgeError(problem)


def data_url(picture: Image.Image) -> str:
    """A picture as a ``data:`` address, PNG in base64."""
    return "data:image/png;base64," + to_base64_png(picture.convert("RGB"))


def _probabilities(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Probabilities by token text; tokens of the same text are added."""
    found: dict[str, float] = {}
    for entry in entries:
        found[entry["token"]] = found.get(entry["token"], 0.0) + math.exp(entry["logprob"])
    return found
