"""Finds a reward by name and makes it ready to call."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from dina.errors import DinaError, advice
from dina.rewards.protocol import Reward, RewardSpec
from dina.rewards.verl import VerlReward, is_verl_style

ENTRY_POINT_GROUP = "dina.rewards"
BUILTIN = {
    "objects": "dina.rewards.objects:ObjectsReward",
    "ocr": "dina.rewards.ocr:OCRReward",
    "remote": "dina.rewards.remote:RemoteReward",
    "vqa": "dina.rewards.vqa:ExactMatchReward",
    "choice": "dina.rewards.understanding:ChoiceReward",
    "number": "dina.rewards.understanding:NumberReward",
    "anls": "dina.rewards.understanding:ANLSReward",
    "relaxed_accuracy": "dina.rewards.understanding:RelaxedAccuracyReward",
    "format": "dina.rewards.understanding:FormatReward",
    "clip_score": "dina.rewards.alignment.clip_score:CLIPScoreReward",
    "vlm": "dina.rewards.alignment.judge:VLMReward",
    "self_judge": "dina.rewards.alignment.self_judge:SelfJudgeReward",
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
    (such as TRL's ``get_soft_overlong_punishment``) and is called. One in verl's manner (``compute_score``) is
    wrapped. ``setup()`` has been called on what comes back.

    Raises:
        DinaError: nothing has that name, a keyword fits no parameter, or setting up raised.
    """
    if spec.own_process:
        from dina.rewards.isolated import IsolatedReward

        return IsolatedReward(spec)
    target = find_reward(spec.use)
    _check_kwargs(target, spec)
    try:
        if inspect.isclass(target) or _is_factory(target, spec):
            target = target(**spec.kwargs)
        elif is_verl_style(parameters(target)[0]):
            target = VerlReward(target, **spec.kwargs)
        elif spec.kwargs:
            target = functools.partial(target, **spec.kwargs)
        if callable(setup := getattr(target, "setup", None)):
            setup()
    except Exception as error:
        raise DinaError(f"reward {spec.label!r} ({spec.use}) could not be set up: {_words(error)}") from error
    if not callable(target):
        raise DinaError(
            f"reward {spec.label!r}: {spec.use} gives a {type(target).__name__}, which is not callable"
        )
    return target


def check_reward(spec: RewardSpec) -> None:
    """Finds the reward and compares ``kwargs`` with what it takes, without setting it up.

    Raises:
        DinaError: nothing has that name, it cannot be imported, a keyword fits no parameter, or one is missing.
    """
    target = find_reward(spec.use)
    _check_kwargs(target, spec)
    if not inspect.isclass(target):
        return
    missing = [
        name for name, p in parameters(target)[0].items() if p.default is p.empty and name not in spec.kwargs
    ]
    if missing:
        raise DinaError(f"reward {spec.label!r} needs the argument {missing[0]!r}; set it in its `kwargs`")


def find_reward(use: str) -> Any:
    """The function or class that a recipe's ``use`` names, as it is.

    Raises:
        DinaError: nothing has that name, or it cannot be imported.
    """
    return load_object(available_rewards().get(use, use), what=f"reward {use!r}")


def load_object(path: str, what: str = "") -> Any:
    """Imports ``package.module:attr`` or ``path/to/file.py:attr``. ``what`` names the thing in errors.

    Raises:
        DinaError: not of that form, no such module or attribute, or the import itself fails.
    """
    what = what or repr(path)
    module_name, colon, attribute = path.rpartition(":")
    if not colon and path.endswith(".py"):
        raise DinaError(f"no {what}: which object of the file? Write {path}:attr")
    if not colon:
        package, dot, last = path.rpartition(".")
        hint = f"did you mean {package}:{last}?" if dot else advice(path, available_rewards())
        raise DinaError(f"no {what}: {hint} (your own is package.module:attr or ./file.py:attr)")
    is_file = module_name.endswith(".py")
    try:
        found: Any = _import_file(Path(module_name)) if is_file else importlib.import_module(module_name)
    except Exception as error:
        if is_file:
            raise DinaError(f"{what}: the file {module_name} cannot be imported ({_words(error)})") from error
        raise DinaError(
            f"{what}: module {module_name!r} cannot be imported ({_words(error)}). "
            "Is its folder on PYTHONPATH, or its package installed?"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise DinaError(f"{what}: {module_name} has no {part!r}; {advice(part, public)}")
        found = getattr(found, part)
    return found


def build_part(given: Any, table: Mapping[str, str], kwargs: Mapping[str, Any] | None, what: str) -> Any:
    """A part of a reward that a recipe names, such as a detector.

    Args:
        given: a name of ``table``, ``package.module:attr``, a class, which is instantiated with ``kwargs``, or the
            part itself.

    Raises:
        DinaError: nothing has that name, or it cannot be imported.
    """
    if isinstance(given, str):
        if ":" not in given and given not in table:
            hint = advice(given, table)
            raise DinaError(f"no {what} {given!r}: {hint} (your own is written package.module:attr)")
        given = load_object(table.get(given, given))
    return given(**(kwargs or {})) if isinstance(given, type) else given


def _import_file(path: Path) -> ModuleType:
    """Runs a file as a module, once. It can import what lies beside it."""
    path = path.resolve()
    name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
        # `**columns` takes any word, but one that looks like an argument of its own is a slip.
        slip = difflib.get_close_matches(key, named.keys() - spec.kwargs.keys(), n=1, cutoff=0.8)
        if key not in named and (slip or not open_ended):
            raise DinaError(f"reward {spec.label!r} takes no argument {key!r}; {advice(key, named)}")


def _words(error: BaseException) -> str:
    if isinstance(error, DinaError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
