"""Recipes: YAML files that set the values of a typed config.

* ``extends: other.yaml`` starts from another recipe, named relative to the file; sections merge, lists replace.
* ``a.b=c`` on the command line sets one value; ``c`` is YAML, and a number picks from a list
  (``rewards.0.weight=2``).
* A text that begins with ``./`` or ``../`` in a file is a path relative to that file. Any other path is
  relative to the working directory.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

import dina
from dina.errors import DinaError, advice
from dina.rl.recipe.errors import KeyPath, explain

Config = TypeVar("Config", bound=BaseModel)

RECIPES = Path(dina.__file__).parent / "recipes"


def load_recipe(path: str | Path, overrides: Sequence[str], model_cls: type[Config]) -> Config:
    """Reads a recipe, applies overrides such as ``optim.learning_rate=1e-5``, and checks it.

    Args:
        path: a file, or the name of a shipped recipe such as ``scenes/t2i_grpo``.
        overrides: ``a.b=c`` texts, later ones win.
        model_cls: the pydantic model that says which keys there are.

    Raises:
        DinaError: no such recipe, broken YAML, an ``extends`` cycle, or values that the model refuses; names
            file, line, key and the nearest valid word.
    """
    file = find_recipe(path)
    recipe = _read(file, ())
    for text in overrides:
        recipe.override(text)
    try:
        return model_cls.model_validate(recipe.values)
    except ValidationError as error:
        problems = explain(error, model_cls, recipe.values, recipe.where, _shown(file))
        raise DinaError("\n".join(problems)) from None


def dump_recipe(config: BaseModel) -> str:
    """The resolved config as YAML, every value written out; ``load_recipe`` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def read_value(text: str, what: str) -> Any:
    """One value as recipes spell it. ``what`` names it in the error.

    Raises:
        DinaError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise DinaError(f"{what} is not valid YAML ({getattr(error, 'problem', error)})") from None


def recipe_names() -> list[str]:
    """Names of the shipped recipes, such as ``scenes/t2i_grpo``."""
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: ``name`` as a path, or below the shipped recipes, with or without ``.yaml``.

    Raises:
        DinaError: there is none; names the nearest shipped recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    for candidate in (RECIPES / shipped, RECIPES / f"{shipped}.yaml"):
        if not path.is_absolute() and candidate.is_file():
            return candidate
    word = shipped.with_suffix("").as_posix()
    raise DinaError(
        f"There is no recipe {str(name)!r}, neither as a file nor shipped; {advice(word, recipe_names())}"
    )


@dataclass
class _Recipe:
    """Values with, for each key path, where it was last set (``file:line`` or the command line)."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str | None:
        """Where the key at ``path`` was set, or the nearest section around it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path)

    def merge(self, other: _Recipe) -> None:
        self._merge(self.values, other.values, (), other.origins)

    def _merge(
        self, base: dict[str, Any], over: dict[str, Any], path: KeyPath, origins: dict[KeyPath, str]
    ) -> None:
        for key, value in over.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                self.origins[here] = origins[here]
                self._merge(base[key], value, here, origins)
            else:
                base[key] = value
                self._replace_origins(here, origins)

    def _replace_origins(self, path: KeyPath, origins: dict[KeyPath, str]) -> None:
        depth = len(path)
        self.origins = {key: at for key, at in self.origins.items() if key[:depth] != path}
        self.origins |= {key: at for key, at in origins.items() if key[:depth] == path}

    def override(self, text: str) -> None:
        """Applies one ``a.b=c``."""
        dotted, equals, value_text = text.partition("=")
        if not equals or not dotted.strip():
            raise DinaError(f"command line: {text!r} is not of the form section.key=value")
        value = read_value(value_text, f"command line: the value of {text!r}")
        path = self._set(dotted.strip().split("."), value, text)
        self._replace_origins(path, {path: f"command line ({text})"})

    def _set(self, keys: list[str], value: Any, text: str) -> KeyPath:
        node: Any = self.values
        path: KeyPath = ()
        for depth, key in enumerate(keys):
            step: str | int = key
            if isinstance(node, list):
                if not key.isdigit() or int(key) >= len(node):
                    raise DinaError(
                        f"command line ({text}): {_dotted(path)} is a list of {len(node)}; "
                        f"{key!r} is not one of 0 to {len(node) - 1}"
                    )
                step = int(key)
            elif not isinstance(node, dict):
                raise DinaError(f"command line ({text}): {_dotted(path)} is a value, it has no key {key!r}")
            path = (*path, step)
            if depth == len(keys) - 1:
                node[step] = value
            elif isinstance(node, dict) and node.get(key) is None:
                node[key] = {}  # a section that is `null` in a file is there as well
                node = node[key]
            else:
                node = node[step]
        return path


def _read(file: Path, chain: tuple[Path, ...]) -> _Recipe:
    chain = (*chain, file.resolve())
    recipe = _parse(file)
    base_name = recipe.values.pop("extends", None)
    if base_name is None:
        return recipe
    at = recipe.origins.pop(("extends",))
    if not isinstance(base_name, str):
        raise DinaError(f"{at}: extends must be the path of one recipe, not {base_name!r}")
    base_file = file.parent / base_name
    if not base_file.is_file():
        near = advice(base_file.name, (other.name for other in file.parent.glob("*.yaml") if other != file))
        raise DinaError(f"{at}: extends {base_name!r}, but there is no file {_shown(base_file)}; {near}")
    if base_file.resolve() in chain:
        names = " extends ".join(_shown(link) for link in (*chain, base_file.resolve()))
        raise DinaError(f"{at}: the recipes extend each other in a circle: {names}")
    base = _read(base_file, chain)
    base.merge(recipe)
    return base


def _parse(file: Path) -> _Recipe:
    """Reads one file, without what it extends."""
    shown = _shown(file)
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DinaError(f"{shown} cannot be read: {error}") from None
    except yaml.reader.ReaderError as error:
        raise DinaError(f"{shown}: not a text file ({error.reason})") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return _Recipe()
        if not isinstance(node, yaml.MappingNode):
            raise DinaError(f"{shown}: a recipe is a mapping of sections such as `model:` and `data:`")
        origins: dict[KeyPath, str] = {}
        _note_lines(node, (), shown, origins)
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DinaError(f"{shown}:{line}: not valid YAML: {error.problem}") from None
    finally:
        loader.dispose()
    return _Recipe(_with_paths(values, file.parent), origins)


def _note_lines(node: yaml.Node, path: KeyPath, shown: str, origins: dict[KeyPath, str]) -> None:
    """Notes ``file:line`` of every key and list item below ``node``; refuses a key that is given twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            origins[(*path, index)] = f"{shown}:{item.start_mark.line + 1}"
            _note_lines(item, (*path, index), shown, origins)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise DinaError(
                    f"{shown}:{line}: {_dotted((*path, name))} is already set in line {seen[name]}"
                )
            seen[name] = line
            origins[(*path, name)] = f"{shown}:{line}"
            _note_lines(value, (*path, name), shown, origins)


def _with_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {
            key: value if key == "extends" else _with_paths(value, folder) for key, value in value.items()
        }
    if isinstance(value, list):
        return [_with_paths(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((folder / value).resolve())
    return value


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _shown(file: Path) -> str:
    """A path as short as it can be said from the working directory."""
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-5`` is a number, ``on`` and ``no`` are texts, dates stay texts."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":float"))
    ]
    for first, resolvers in copy.copy(yaml.SafeLoader.yaml_implicit_resolvers).items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    "-+0123456789.",
)
