"""Finds a reward by name and makes it ready to call."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from dina.errors import DinaError
from dina.rewards.protocol import Reward, RewardSpec

ENTRY_POINT_GROUP = "dina.rewards"
BUILTIN = {
    "objects": "dina.rewards.objects:ObjectsReward",
    "ocr": "dina.rewards.ocr:OCRReward",
    "vqa": "dina.rewards.vqa:ExactMatchReward",
    "choice": "dina.rewards.understanding:ChoiceReward",
    "number": "dina.rewards.understanding:NumberReward",
    "anls": "dina.rewards.understanding:ANLSReward",
    "relaxed_accuracy": "dina.rewards.understanding:RelaxedAccuracyReward",
    "format": "dina.rewards.understanding:FormatReward",
    "clip_score": "dina.rewards.alignment.clip_score:CLIPScoreReward",
    "vlm": "dina.rewards.alignment.judge:VLMReward",
    "vlm_endpoint": "dina.rewards.alignment.endpoint:VLMEndpointReward",
    "aesthetic": "dina.rewards.preference:AestheticReward",
    "pick_score": "dina.rewards.preference:PickScoreReward",
    "hps": "dina.rewards.preference:HPSReward",
    "image_quality": "dina.rewards.quality:ImageQualityReward",
}
_REWARD_ARGUMENTS = {"prompts", "completions", "completion_ids", "generated_images"}


def available_rewards() -> dict[str, str]:
    """Reward names that a recipe can use, with where each comes from."""
    plugins = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return plugins | BUILTIN


def build_reward(spec: RewardSpec) -> Reward:
    """The callable of ``spec``: a class is instantiated with ``kwargs``, a function gets them bound.

    A function that takes none of a reward's arguments, and can be called with ``kwargs`` alone, is a factory
    (such as TRL's ``get_soft_overlong_punishment``) and is called.

    Raises:
        DinaError: nothing has that name, a keyword fits no parameter, or setting up raised.
    """
    target = load_object(available_rewards().get(spec.use, spec.use), what=f"reward {spec.use!r}")
    _check_kwargs(target, spec)
    try:
        if inspect.isclass(target) or _is_factory(target, spec):
            target = target(**spec.kwargs)
        elif spec.kwargs:
            target = functools.partial(target, **spec.kwargs)
    except Exception as error:
        raise DinaError(f"reward {spec.label!r} ({spec.use}) could not be set up: {_words(error)}") from error
    if not callable(target):
        raise DinaError(
            f"reward {spec.label!r}: {spec.use} gives a {type(target).__name__}, which is not callable"
        )
    return target


def load_object(path: str, what: str = "") -> Any:
    """Imports ``package.module:attr``. ``what`` names the thing in errors.

    Raises:
        DinaError: not of that form, no such module or attribute, or the import itself fails.
    """
    what = what or repr(path)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        package, dot, last = path.rpartition(".")
        advice = f"did you mean {package}:{last}?" if dot else _advice(path, available_rewards())
        raise DinaError(f"no {what}: {advice} (a reward of your own is written package.module:attr)")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise DinaError(
            f"{what}: module {module_name!r} cannot be imported ({_words(error)}). "
            "Is its folder on PYTHONPATH, or its package installed?"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise DinaError(f"{what}: {module_name} has no {part!r}; {_advice(part, public)}")
        found = getattr(found, part)
    return found


def parameters(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a callable, and whether it takes any keyword (``**kwargs``)."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return {}, True
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    return named, open_ended


def _is_factory(target: Any, spec: RewardSpec) -> bool:
    named, open_ended = parameters(target)
    if not inspect.isfunction(target) or open_ended or _REWARD_ARGUMENTS & named.keys():
        return False
    return {name for name, p in named.items() if p.default is p.empty} <= spec.kwargs.keys()


def _check_kwargs(target: Any, spec: RewardSpec) -> None:
    named, open_ended = parameters(target)
    for key in spec.kwargs:
        if key not in named and not open_ended:
            raise DinaError(f"reward {spec.label!r} takes no argument {key!r}; {_advice(key, named)}")


def _advice(word: str, valid: Iterable[str] | Mapping[str, Any]) -> str:
    names = sorted(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "it takes none"


def _words(error: BaseException) -> str:
    if isinstance(error, DinaError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
