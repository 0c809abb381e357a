"""Rows of a dataset to training examples: pictures to codes once, then a planned order of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data
from datasets import Dataset, Features, Image, Value, concatenate_datasets, load_dataset
from datasets import List as ListOf
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from torch import Tensor

from dina.errors import DinaError
from dina.model.processor import NO_LOSS, DinaProcessor, Encoding
from dina.model.visual_tokenizer import DinaVisualTokenizer

TASKS = ("t2i", "vqa")
_POOL = 16  # batches whose rows are sorted by length together


def load_rows(paths: Sequence[Path]) -> Dataset:
    """Reads Parquet, JSONL or image folders into one dataset with the columns task, prompt, answer, image.

    Rows without a task are drawings (``t2i``), as in prompt files.

    Raises:
        DinaError: a path is missing, holds nothing readable, or lacks a column.
    """
    return concatenate_datasets([_with_columns(_read(Path(path)), path) for path in paths])


def _read(path: Path) -> Dataset:
    try:
        return _load(path)
    except DatasetGenerationError as error:
        raise DinaError(f"data: {path} cannot be read: {error.__cause__ or error}") from error


def _load(path: Path) -> Dataset:
    if not path.exists():
        raise DinaError(f"data: {path} is not there")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for suffix, kind in ((".parquet", "parquet"), (".jsonl", "json")):
        chosen = [str(file) for file in files if file.suffix == suffix and file.name != "metadata.jsonl"]
        if not chosen:
            continue
        rows = load_dataset(kind, data_files=chosen, split="train")
        folder = str(path if path.is_dir() else path.parent)
        if kind == "json" and "image" in rows.column_names:
            rows = rows.map(lambda row, root: {"image": f"{root}/{row['image']}"}, fn_kwargs={"root": folder})
        return rows
    if not path.is_dir():
        raise DinaError(f"data: {path} is neither Parquet nor JSONL nor a folder")
    return load_dataset("imagefolder", data_dir=str(path), split="train")


def _with_columns(rows: Dataset, path: Path) -> Dataset:
    missing = [name for name in ("prompt", "image") if name not in rows.column_names]
    if missing:
        raise DinaError(
            f"data: {path} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}"
        )
    for name, value in (("task", "t2i"), ("answer", None)):
        if name not in rows.column_names:
            rows = rows.add_column(name, [value] * len(rows))
    rows = rows.select_columns(["task", "prompt", "answer", "image"])
    return rows.cast_column("answer", Value("string")).cast_column("image", Image())


def encode_rows(
    rows: Dataset,
    processor: DinaProcessor,
    visual_tokenizer: DinaVisualTokenizer,
    context: int,
    batch_size: int = 64,
) -> Dataset:
    """Tokenises every row once; the result is cached by the rows, the visual tokenizer and the processor.

    Columns of the result: input_ids ``[T]``, labels ``[T]``, codes and code_labels (``[T, L]``, flattened),
    length, task (index in ``TASKS``) and tag_start: where a drawing's size tag begins, 0 for other rows.

    Raises:
        DinaError: a row has an unknown task, no answer, or more than ``context`` tokens.
    """

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        codes = visual_tokenizer.encode([_pixels(image) for image in batch["image"]])
        columns: dict[str, list[Any]] = {name: [] for name in (*_LISTS, *_NUMBERS)}
        for row, index in enumerate(indices):
            task, prompt, answer = (batch[name][row] for name in ("task", "prompt", "answer"))
            encoding = _encode_row(processor, task, prompt, answer, codes[row].cpu(), index)
            if len(encoding.text_ids) > context:
                raise DinaError(
                    f"data row {index} has {len(encoding.text_ids)} tokens; the context is {context}"
                )
            for name, value in _example(encoding, task, processor).items():
                columns[name].append(value)
        return columns

    identity = (
        rows._fingerprint,
        _digest(visual_tokenizer),
        processor.tokenizer.backend_tokenizer.to_str(),
        context,
    )
    encoded = rows.map(
        encode,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        remove_columns=rows.column_names,
        features=_features(),
        new_fingerprint=Hasher.hash(identity),
        desc="pictures to codes",
    )
    return encoded.with_format("numpy")


_LISTS = ("input_ids", "labels", "codes", "code_labels")
_NUMBERS = ("length", "task", "tag_start")


def _features() -> Features:
    lists = {name: ListOf(Value("int32")) for name in _LISTS}
    return Features({**lists, **{name: Value("int32") for name in _NUMBERS}})


def _pixels(image: Any) -> Tensor:
    """A PIL picture to ``[3, H, W]`` floats in 0..1."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _encode_row(
    processor: DinaProcessor, task: str, prompt: str, answer: str | None, codes: Tensor, index: int
) -> Encoding:
    picture = {"type": "image", "codes": codes}
    if task == "t2i":
        return processor.encode(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": [picture]}]
        )
    if task != "vqa":
        raise DinaError(f"data row {index}: unknown task {task!r}; tasks are {', '.join(TASKS)}")
    if not answer:
        raise DinaError(f"data row {index}: a vqa row needs an answer")
    question = [picture, {"type": "text", "text": prompt}]
    return processor.encode([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def _example(encoding: Encoding, task: str, processor: DinaProcessor) -> dict[str, Any]:
    ids = encoding.text_ids.numpy()
    tags = np.flatnonzero((ids == processor.layout.size_start) & (task == "t2i"))
    return {
        "input_ids": ids,
        "labels": encoding.labels.numpy(),
        "codes": encoding.codes.flatten().numpy(),
        "code_labels": encoding.code_labels.flatten().numpy(),
        "length": len(ids),
        "task": TASKS.index(task),
        "tag_start": int(tags[-1]) if len(tags) else 0,
    }


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class BatchPlan:
    """The whole order of a stage: row numbers ``[N]``, and where each row's tokens start (``[N]``)."""

    rows: np.ndarray
    starts: np.ndarray


def plan_batches(
    encoded: Dataset,
    batches: int,
    batch_size: int,
    task_weights: dict[str, float],
    drop_prompt: float,
    seed: int,
) -> BatchPlan:
    """Draws every batch of a stage in advance, so that a resumed run sees the same rows.

    Every batch holds the tasks in the same shares, because text and code losses share one denominator.
    Rows of a task come in shuffled passes; among ``_POOL`` batches they are sorted by length, which spares
    padding, and the batches are shuffled again.
    """
    rng = np.random.default_rng(seed)
    tasks, lengths = np.asarray(encoded["task"]), np.asarray(encoded["length"])
    shares = _shares(tasks, task_weights)
    slots = _interleave(shares, batches * batch_size)
    rows = np.zeros(len(slots), dtype=np.int64)
    for task in shares:
        rows[slots == task] = _passes(np.flatnonzero(tasks == task), int((slots == task).sum()), rng)
    dropped = rng.random(len(rows)) < drop_prompt
    starts = np.where(dropped, np.asarray(encoded["tag_start"])[rows], 0)
    order = [
        _sort_pool(
            slots[first : first + size], (lengths[rows] - starts)[first : first + size], batch_size, rng
        )
        + first
        for first, size in _pools(len(rows), _POOL * batch_size)
    ]
    chosen = np.concatenate(order)
    return BatchPlan(rows[chosen], starts[chosen])


def _shares(tasks: np.ndarray, weights: dict[str, float]) -> dict[int, float]:
    unknown = set(weights) - set(TASKS)
    if unknown:
        raise DinaError(f"data.task_weights: unknown task {sorted(unknown)}; tasks are {', '.join(TASKS)}")
    shares = {}
    for task, name in enumerate(TASKS):
        rows = int((tasks == task).sum())
        share = weights.get(name, 0.0) if weights else rows
        if share and not rows:
            raise DinaError(f"data.task_weights: {name} has weight {share}, but no row has that task")
        if share:
            shares[task] = float(share)
    return shares


def _interleave(shares: dict[int, float], count: int) -> np.ndarray:
    """``count`` task numbers, evenly spread in the given shares."""
    total = sum(shares.values())
    times = [(np.arange(count) + 0.5) * total / share for share in shares.values()]
    names = np.repeat(list(shares), count)
    return names[np.argsort(np.concatenate(times), kind="stable")[:count]]


def _passes(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` rows in as many shuffled passes as it takes."""
    passes = -(-count // len(rows)) if count else 0
    return np.concatenate([rng.permutation(rows) for _ in range(passes)] or [rows[:0]])[:count]


def _pools(count: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(size, count - first)) for first in range(0, count, size)]


def _sort_pool(
    slots: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """An order of the pool's rows: per task by length over the batches, then whole batches shuffled."""
    order = np.arange(len(slots))
    for task in np.unique(slots):
        where = np.flatnonzero(slots == task)
        order[where] = where[np.argsort(lengths[where], kind="stable")]
    return order.reshape(-1, batch_size)[rng.permutation(len(order) // batch_size)].reshape(-1)


class PlannedRows(torch.utils.data.Dataset):
    """Encoded rows in the order of a plan (in their own order without one), as numpy examples."""

    def __init__(self, encoded: Dataset, levels: int, plan: BatchPlan | None = None) -> None:
        self.encoded, self.levels = encoded, levels
        everything = np.arange(len(encoded))
        self.plan = plan or BatchPlan(everything, np.zeros_like(everything))

    def __len__(self) -> int:
        return len(self.plan.rows)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[dict[str, np.ndarray]]:
        batch = self.encoded[self.plan.rows[positions].tolist()]
        starts = self.plan.starts[positions]
        return [self._example(batch, i, int(start)) for i, start in enumerate(starts)]

    def _example(self, batch: dict[str, Any], index: int, start: int) -> dict[str, np.ndarray]:
        flat = {name: batch[name][index] for name in _LISTS}
        for name in ("codes", "code_labels"):
            flat[name] = flat[name].reshape(-1, self.levels)
        return {name: value[start:] for name, value in flat.items()}


@dataclass(frozen=True)
class Collator:
    """Pads examples on the right to ``[B, T]`` and ``[B, T, L]``."""

    pad_id: int

    def __call__(self, examples: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        fill = {"input_ids": self.pad_id, "labels": NO_LOSS, "codes": -1, "code_labels": NO_LOSS}
        batch = {name: _pad([e[name] for e in examples], value) for name, value in fill.items()}
        lengths = torch.tensor([len(e["input_ids"]) for e in examples])
        positions = torch.arange(batch["input_ids"].shape[1])
        return {**batch, "attention_mask": (positions < lengths[:, None]).long()}


def _pad(arrays: Sequence[np.ndarray], value: int) -> Tensor:
    length = max(len(array) for array in arrays)
    out = np.full((len(arrays), length, *arrays[0].shape[1:]), value, dtype=np.int64)
    for target, array in zip(out, arrays, strict=True):
        target[: len(array)] = array
    return torch.from_numpy(out)
