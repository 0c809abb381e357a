"""Rewards written for verl: ``compute_score(data_source, solution_str, ground_truth, extra_info)``.

The recipe names such a function as it is; it is called once per sample, and may be async. verl-omni's form with
``solution_image`` instead of ``solution_str`` gets the picture as a uint8 tensor ``[3, H, W]``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_SOLUTIONS = ("solution_str", "solution_image")


def is_verl_style(names: Iterable[str]) -> bool:
    """Whether a function with parameters of these names is one of verl's."""
    found = set(names)
    return "ground_truth" in found and any(name in found for name in _SOLUTIONS)


class VerlReward:
    """Calls a function of verl's for each sample that has a ground truth.

    Columns: ``ground_truth``, or verl's ``reward_model: {ground_truth: …}``; ``data_source`` and ``extra_info``
    where the prompt file has them. A dictionary that the function returns gives ``score`` and sub-scores.

    Args:
        function: the function; ``kwargs`` are further arguments of it.
    """

    def __init__(self, function: Callable[..., Any], **kwargs: Any) -> None:
        self._function = functools.partial(function, **kwargs)
        self._wanted = set(inspect.signature(function).parameters)
        self._pictures = "solution_image" in self._wanted

    async def __call__(
        self,
        completions: Sequence[list[dict[str, Any]]],
        generated_images: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Any]:
        calls = [
            self._arguments(position, completions, generated_images, columns)
            for position in range(len(completions))
        ]
        return list(await asyncio.gather(*map(self._score, calls)))

    def _arguments(
        self,
        position: int,
        completions: Sequence[list[dict[str, Any]]],
        generated_images: Sequence[Any] | None,
        columns: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """Keywords for one sample; ``None`` where the function does not apply."""
        row = {name: columns[name][position] for name in _COLUMNS if name in columns}
        truth = row.get("ground_truth")
        if truth is None:
            truth = (row.get("reward_model") or {}).get("ground_truth")
        text = completions[position][0]["content"]
        image = generated_images[position] if generated_images is not None else None
        if truth is None or (image is None if self._pictures else not isinstance(text, str)):
            return None
        given = {
            "data_source": row.get("data_source") or "",
            "ground_truth": truth,
            "extra_info": row.get("extra_info") or {},
            **({"solution_image": _tensor(image)} if self._pictures else {"solution_str": text}),
        }
        return {name: value for name, value in given.items() if name in self._wanted}

    async def _score(self, arguments: dict[str, Any] | None) -> Any:
        if arguments is None:
            return None
        try:
            value = self._function(**arguments)
            return await value if inspect.isawaitable(value) else value
        except Exception as error:  # it fails its own sample, and no other
            return error


_COLUMNS = ("ground_truth", "reward_model", "data_source", "extra_info")


def _tensor(image: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
