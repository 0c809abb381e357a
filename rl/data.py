"""Prompts of a run: read from files, and put in an order that resuming can take up again."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dina.errors import DinaError, advice
from dina.rewards.registry import load_object
from dina.rewards.texts import TextBucket, text_bucket
from dina.rl.prompt_files import Row, read_rows
from dina.rl.recipe.config import Difficulty
from dina.rl.recipe.errors import explain
from dina.rollout.protocol import Prompt, derive_seed

Renderer = Callable[[dict[str, Any]], np.ndarray]
PASS_RATE = "pass_rate"
"""The column in which ``dina prepare`` says how often the base model is right."""


class _Object(BaseModel):
    """One clause of GenEval's metadata: what has to be there (``include``) or must not be (``exclude``)."""

    model_config = ConfigDict(strict=True)
    class_: str = Field(alias="class", min_length=1)
    count: int = Field(1, ge=1)
    color: str | None = None
    position: list[Any] | None = None

    @field_validator("position")
    @classmethod
    def _relation(cls, position: list[Any] | None) -> list[Any] | None:
        if position is not None and [type(part) for part in position] != [str, int]:
            raise ValueError(
                f'must be a relation and the number of another object, ["left of", 0], not {position}'
            )
        return position


class _Row(BaseModel):
    """The columns that mean something to ``dina``; others are handed to the rewards."""

    model_config = ConfigDict(strict=True)
    prompt: str = Field(min_length=1)
    id: str | None = Field(None, min_length=1)
    task: Literal["t2i", "vqa"] = "t2i"
    tag: str | None = None
    include: list[_Object] | None = None
    exclude: list[_Object] | None = None
    grid: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    text: list[str] | None = None
    answer: str | list[str] | None = None
    image: Any = None
    scene: dict[str, Any] | None = None

    @field_validator("scene", mode="before")
    @classmethod
    def _from_text(cls, scene: Any) -> Any:
        """Parquet columns have one type, so scenes of different make lie there as JSON texts."""
        return json.loads(scene) if isinstance(scene, str) else scene


_OWN_FIELDS = {"id", "task", "prompt", "grid", "image"}


def load_prompts(
    paths: str | Path | Sequence[str | Path],
    *,
    renderer: str | Renderer | None = None,
    tags: Sequence[str] | None = None,
    grid: tuple[int, int] | Sequence[int] | None = None,
) -> list[Prompt]:
    """Reads prompt files into prompts, in their order.

    A row needs ``prompt``, or ``question``, which makes it a ``vqa`` row. ``task`` is ``t2i`` unless said otherwise,
    ``id`` is made of the file's name and the row's number. A ``vqa`` row needs its picture: ``image`` (a path
    relative to the file) or ``scene``.

    Args:
        paths: JSONL or Parquet files, or folders of pictures with ``metadata.jsonl``.
        renderer: draws the ``scene`` of a ``vqa`` row as ``[H, W, 3]`` uint8; ``module:attr`` or a callable.
        tags: keep rows with these tags only.
        grid: (rows, columns) of pictures to draw where a row says nothing.

    Raises:
        DinaError: a wrong row (named by file, line and key), an id that occurs twice, an empty file, or a tag
            that no row has.
    """
    draw = load_object(renderer, what=f"renderer {renderer!r}") if isinstance(renderer, str) else renderer
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for number, (place, row) in enumerate(read_rows(Path(path)), start=1):
            prompt = to_prompt(row, place, Path(path), number, draw, grid, tags)
            if prompt.id in places:
                raise DinaError(
                    f"{place}: id {prompt.id!r} is already that of {places[prompt.id]}; ids are unique"
                )
            places[prompt.id] = place
            prompts.append(prompt)
    if tags is None:
        return prompts
    known = {prompt.tag for prompt in prompts}
    for tag in tags:
        if tag not in known:
            raise DinaError(f"No prompt of {paths} has the tag {tag!r}; {advice(tag, known)}")
    return [prompt for prompt in prompts if prompt.tag in tags]


def check_prompt_lengths(prompts: Sequence[Prompt], length: Callable[[Prompt], int], limit: int) -> None:
    """Refuses prompts longer than ``limit`` tokens before a run starts, naming the first and how many there are.

    Raises:
        DinaError: at least one is too long.
    """
    long = [(prompt, n) for prompt in prompts if (n := length(prompt)) > limit]
    if long:
        prompt, n = long[0]
        raise DinaError(
            f"Prompt {prompt.id!r} has {n} tokens, and at most {limit} fit"
            + (f" (so it is with {len(long)} prompts)" if len(long) > 1 else "")
            + ". Shorten it, or raise data.max_prompt_length as far as the model's context allows."
        )


def to_prompt(
    row: Row,
    place: str,
    path: Path,
    number: int,
    draw: Renderer | None = None,
    grid: Sequence[int] | None = None,
    tags: Sequence[str] | None = None,
) -> Prompt:
    """Checks one row of the file ``path`` and makes it a prompt; the arguments are those of ``load_prompts``.

    Args:
        place: what errors call the row.
        number: of the row, for its id if it has none.

    Raises:
        DinaError: the row is wrong, or its picture cannot be had.
    """
    if "question" in row and "prompt" not in row:
        row = {"task": "vqa", "prompt": row["question"]} | {k: v for k, v in row.items() if k != "question"}
    _refuse_misspelt(row, _Row, place)
    for clause in [*_clauses(row, "include"), *_clauses(row, "exclude")]:
        _refuse_misspelt(clause, _Object, place)
    try:
        checked = _Row.model_validate(row)
    except ValidationError as error:
        raise DinaError("\n".join(explain(error, _Row, row, lambda _: None, place))) from None
    own_grid = checked.grid or grid
    if checked.task == "t2i" and own_grid is None:
        raise DinaError(
            f'{place}: grid is required and not set, such as "grid": [8, 8]; or set data.grid for all'
        )
    wanted = tags is None or (checked.tag or checked.task) in tags
    return Prompt(
        id=checked.id or f"{path.stem}-{number}",
        text=checked.prompt,
        task=checked.task,
        grid=(own_grid[0], own_grid[1]) if own_grid else None,
        image=_picture(checked, place, path, draw) if wanted and checked.task == "vqa" else None,
        columns={key: value for key, value in row.items() if key not in _OWN_FIELDS},
    )


def _clauses(row: Row, key: str) -> list[Row]:
    clauses = row.get(key)
    return [clause for clause in clauses if isinstance(clause, dict)] if isinstance(clauses, list) else []


def _refuse_misspelt(row: Row, model: type[BaseModel], place: str) -> None:
    """Other columns are welcome, but not one that looks like a known one which the row lacks."""
    known = [field.alias or name for name, field in model.model_fields.items()]
    for key in row:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8) if key not in known else []
        if near and near[0] not in row:
            raise DinaError(f"{place}: {key}: unknown key; did you mean {near[0]!r}?")


def _picture(row: _Row, place: str, path: Path, draw: Renderer | None) -> np.ndarray:
    if row.image is not None:
        return _load_picture(row.image, place, path)
    if row.scene is None:
        raise DinaError(f"{place}: a vqa row needs the picture it asks about, as `image` (a path) or `scene`")
    if draw is None:
        raise DinaError(
            f"{place}: the picture is given as a scene, so data.renderer (module:attr) must draw it"
        )
    try:
        return draw(row.scene)
    except Exception as error:
        raise DinaError(f"{place}: scene: cannot be drawn: {error}") from error


def _load_picture(image: Any, place: str, path: Path) -> np.ndarray:
    if not isinstance(image, Image.Image):
        found = picture_file(image, path)
        if found is None:
            raise DinaError(f"{place}: image: must be a path or a picture, not {type(image).__name__}")
        try:
            image = Image.open(found)
            image.load()
        except (OSError, ValueError) as error:
            raise DinaError(f"{place}: image: cannot be read: {error}") from None
    return np.array(image.convert("RGB"))


def picture_file(image: Any, path: Path) -> Path | io.BytesIO | None:
    """The encoded picture that a row's ``image`` stands for: a path, or a mapping with ``bytes`` or ``path``.

    ``None`` for anything else. Of a list with one picture, that picture.

    Args:
        path: the row's file or folder, which paths are relative to.
    """
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, dict):
        if image.get("bytes"):
            return io.BytesIO(image["bytes"])
        image = image.get("path")
    return (path.parent if path.is_file() else path) / image if isinstance(image, str) else None


class PromptOrder:
    """The endless order in which a run takes its prompts. It depends on the seed and the prompts' ids alone.

    Args:
        sampling: ``shuffle`` takes every prompt once per epoch, each epoch in another order; ``balanced`` takes
            the tags in turn, and within a tag every prompt once before any twice; ``text_buckets`` likewise, and
            within a tag the buckets of its prompts' texts in turn, by how many and how long they are (see
            :func:`dina.rewards.texts.text_bucket`); a mapping of tags to weights takes so many prompts of each tag per
            round.
        difficulty: so many prompts of each band (``easy``, ``medium``, ``hard``; see ``difficulty_of``) per round,
            within each tag whose prompts have a pass rate. ``None``: as they come.

    Raises:
        DinaError: there are no prompts, a mapping does not name exactly their tags, some prompts of a tag have a pass
            rate and others have none, or no prompt of a tag is in a band that has a weight.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        sampling: Literal["shuffle", "balanced", "text_buckets"] | Mapping[str, int] = "shuffle",
        difficulty: Mapping[Difficulty, int] | None = None,
    ) -> None:
        if not prompts:
            raise DinaError("There are no prompts to train on.")
        self.seed = seed
        self.taken = 0
        groups: dict[str, list[Prompt]] = {}
        for prompt in sorted(prompts, key=lambda p: p.id):
            groups.setdefault("" if sampling == "shuffle" else prompt.tag, []).append(prompt)
        weights = dict.fromkeys(groups, 1) if isinstance(sampling, str) else dict(sampling)
        if weights.keys() != groups.keys():
            raise DinaError(
                f"data.sampling weighs the tags {', '.join(sorted(weights))}, but the prompts have "
                f"{', '.join(sorted(groups))}; weigh each of them (data.tags leaves tags out)"
            )
        tags = sorted(groups)
        part_of = _by_texts if sampling == "text_buckets" else _by_difficulty
        parts = [part_of(groups[tag], seed, difficulty) for tag in tags]
        self._rounds = _Rounds(parts, [weights[tag] for tag in tags])
        ids = "\0".join(prompt.id for tag in tags for prompt in groups[tag])
        if sampling == "text_buckets":
            ids += "".join(f"\0{_bucket(p)}" for tag in tags for p in groups[tag])
        if difficulty is not None:
            ids += "".join(f"\0{p.columns.get(PASS_RATE)}" for tag in tags for p in groups[tag])
        self._fingerprint = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()

    def take(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts."""
        chosen = [self._rounds.at(self.taken + k) for k in range(count)]
        self.taken += count
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "seed": self.seed, "prompts": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: DinaError: the state is that of other prompts or another seed."""
        if (state["prompts"], state["seed"]) != (self._fingerprint, self.seed):
            raise DinaError(
                "The prompts, their tags or run.seed have changed since the checkpoint was written, so the run cannot "
                "go on where it stopped. Restore them, or start a new run from the checkpoint (model.path)."
            )
        self.taken = state["taken"]


def difficulty_of(pass_rate: float) -> Difficulty:
    """``hard`` up to a pass rate of 1/3, ``easy`` above 2/3."""
    return "hard" if pass_rate <= 1 / 3 else "easy" if pass_rate > 2 / 3 else "medium"


class _Shuffled:
    """Every prompt once per epoch, each epoch in another order."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts, self.seed = prompts, seed
        self._order: tuple[int, list[Prompt]] = (-1, [])

    def at(self, index: int) -> Prompt:
        epoch, position = divmod(index, len(self.prompts))
        if self._order[0] != epoch:
            order = sorted(self.prompts, key=lambda p: derive_seed(self.seed, "order", epoch, p.id))
            self._order = (epoch, order)
        return self._order[1][position]


class _Rounds:
    """Parts in turn: each as often per round as its weight says, spread over the round."""

    def __init__(self, parts: Sequence[_Shuffled | _Rounds], weights: Sequence[int]) -> None:
        self.parts, self.round = parts, _evenly(weights)

    def at(self, index: int) -> Prompt:
        turn, slot = divmod(index, len(self.round))
        which = self.round[slot]
        return self.parts[which].at(turn * self.round.count(which) + self.round[:slot].count(which))


def _by_texts(
    prompts: Sequence[Prompt], seed: int, weights: Mapping[Difficulty, int] | None
) -> _Shuffled | _Rounds:
    buckets: dict[TextBucket, list[Prompt]] = {}
    for prompt in prompts:
        buckets.setdefault(_bucket(prompt), []).append(prompt)
    parts = [_by_difficulty(buckets[bucket], seed, weights) for bucket in sorted(buckets)]
    return _Rounds(parts, [1] * len(parts))


def _bucket(prompt: Prompt) -> TextBucket:
    return text_bucket(prompt.text, prompt.columns.get("text"))


def _by_difficulty(
    prompts: Sequence[Prompt], seed: int, weights: Mapping[Difficulty, int] | None
) -> _Shuffled | _Rounds:
    rated = [prompt for prompt in prompts if prompt.columns.get(PASS_RATE) is not None]
    if weights is None or not rated:
        return _Shuffled(prompts, seed)
    if len(rated) < len(prompts):
        missing = next(prompt for prompt in prompts if prompt.columns.get(PASS_RATE) is None)
        raise DinaError(
            f"data.difficulty: prompt {missing.id!r} has no {PASS_RATE}, as others of tag {missing.tag!r} have; run "
            "`dina prepare` on all of them"
        )
    bands: dict[Difficulty, list[Prompt]] = {}
    for prompt in rated:
        bands.setdefault(difficulty_of(prompt.columns[PASS_RATE]), []).append(prompt)
    present = [band for band in sorted(bands) if weights.get(band)]
    if not present:
        raise DinaError(
            f"data.difficulty: prompts of tag {prompts[0].tag!r} are {', '.join(sorted(bands))}, which have no weight"
        )
    return _Rounds([_Shuffled(bands[band], seed) for band in present], [weights[band] for band in present])


def _evenly(weights: Sequence[int]) -> list[int]:
    """The numbers 0, 1, 2, … each as often as its weight says, spread over the list."""
    turns = [((k + 0.5) / weight, i) for i, weight in enumerate(weights) for k in range(weight)]
    return [i for _, i in sorted(turns)]
