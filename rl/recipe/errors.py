"""Says in words what a typed config refuses: where, which key, and the nearest valid word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dina.errors import advice

KeyPath = tuple[str | int, ...]


def explain(
    error: ValidationError,
    model_cls: type[BaseModel],
    values: dict[str, Any],
    where: Callable[[KeyPath], str | None],
    recipe: str,
) -> list[str]:
    """One line per problem, ``file:line: key: what is wrong``.

    Args:
        error: what ``model_cls`` raised for ``values``.
        where: gives the place where a key path, or the section around it, was set.
        recipe: named when no key path can be.
    """
    found: dict[KeyPath, list[Any]] = {}
    for problem in error.errors():
        found.setdefault(_path_in(values, problem), []).append(problem)
    lines = []
    for path, problems in found.items():
        what = _what(path, problems, model_cls)
        key = ".".join(map(str, path))
        lines.append(f"{where(path) or recipe}: " + (f"{key}: {what}" if key else what))
    return lines


def _path_in(values: Any, problem: Any) -> KeyPath:
    """The key path of a problem. pydantic's own also names union members, which no recipe has."""
    path: KeyPath = ()
    for step in problem["loc"]:
        if (isinstance(values, dict) and step in values) or (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        ):
            values = values[step]
        elif problem["type"] != "missing" or not isinstance(values, dict) or step != problem["loc"][-1]:
            break
        path = (*path, step)
    return path


def _what(path: KeyPath, problems: list[Any], model_cls: type[BaseModel]) -> str:
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key; {_nearest_key(path, model_cls)}"
    if first["type"] == "missing":
        return "is required and not set"
    if first["type"] == "model_type":
        return f"is a section; give its keys below it, not {_shown(first['input'])}"
    if first["type"] in ("value_error", "assertion_error"):
        return "; ".join(str(problem["ctx"]["error"]) for problem in problems)
    wanted = list(dict.fromkeys(_wanted(problem) for problem in problems))
    got = f"{' or '.join(wanted)}, not {_shown(first['input'])}"
    words = [word for problem in problems for word in _choices(problem)]
    hint = advice(str(first["input"]), words) if isinstance(first["input"], str) and words else ""
    return f"{got}; {hint}" if hint.startswith("did") else got


def _wanted(problem: Any) -> str:
    text: str = problem["msg"]
    text = text.removeprefix("Input should be ").removeprefix("Input should have ")
    return f"must be {text}" if text != problem["msg"] else text


def _choices(problem: Any) -> list[str]:
    return re.findall(r"'([^']*)'", problem["ctx"]["expected"]) if problem["type"] == "literal_error" else []


def _shown(value: Any) -> str:
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest_key(path: KeyPath, model_cls: type[BaseModel]) -> str:
    word = str(path[-1])
    siblings = {name for model in _models_at(model_cls, path[:-1]) for name in model.model_fields}
    everywhere = dict(_all_keys(model_cls))
    if word in everywhere and word not in siblings:
        return f"did you mean {everywhere[word]!r}?"
    hint = advice(word, siblings)
    elsewhere = difflib.get_close_matches(word, everywhere, n=1)
    if not hint.startswith("did") and elsewhere:
        return f"did you mean {everywhere[elsewhere[0]]!r}?"
    return hint


def _models_at(model_cls: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """The models that can stand at a key path; list positions are skipped over."""
    models = [model_cls]
    for step in path:
        if isinstance(step, str):
            fields = [model.model_fields[step] for model in models if step in model.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _all_keys(model_cls: type[BaseModel], prefix: str = "", depth: int = 4) -> Iterator[tuple[str, str]]:
    """(name, dotted path) of every key that is reached through sections."""
    for name, field in model_cls.model_fields.items():
        yield name, prefix + name
        annotation = field.annotation
        if depth and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _all_keys(annotation, f"{prefix}{name}.", depth - 1)
