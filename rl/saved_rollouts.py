"""A batch of samples on disk, as Parquet and safetensors: to look at, to train on again, to resume with.

``rollouts.parquet`` has a row per sample (prompt, seed, answer, weight version, reward, …), readable by any data
tool. ``rollouts.safetensors`` has what is long: the streams and log-probabilities of all samples one after the
other (a sample has ``length`` positions), and the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dina.errors import DinaError
from dina.model.stream import TokenStream
from dina.rollout.protocol import Prompt, Request, Sample

TABLE, TENSORS = "rollouts.parquet", "rollouts.safetensors"
_PICTURE, _QUESTION = "picture.{}", "question_picture.{}"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("task", pa.string()),
        ("grid", pa.list_(pa.int32())),
        ("columns", pa.string()),
        ("group", pa.int32()),
        ("index", pa.int32()),
        ("seed", pa.int64()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("weight_version", pa.int32()),
        ("length", pa.int32()),
        ("question_picture", pa.int32()),
        ("reward", pa.float64()),
    ]
)


def save_rollouts(
    folder: Path, samples: Sequence[Sample], rewards: Sequence[float | None] | None = None
) -> None:
    """Writes samples into ``folder``. Columns of a prompt that JSON cannot hold are kept as text.

    Args:
        rewards: the total of each sample, for people; training scores the samples anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "text_ids": torch.cat([s.stream.text_ids[0] for s in samples]),
        "codes": torch.cat([s.stream.codes[0] for s in samples]),
        "actions": torch.cat([s.stream.actions[0] for s in samples]),
        "logps": torch.cat([s.logps for s in samples]),
        "entropies": torch.cat([s.entropies for s in samples]),
    }
    pictures: dict[int, int] = {}
    rows = []
    for number, sample in enumerate(samples):
        prompt, request = sample.prompt, sample.request
        if sample.image is not None:
            tensors[_PICTURE.format(number)] = torch.from_numpy(np.array(sample.image))
        shown = None
        if prompt.image is not None:
            # The samples of a group share their prompt, so its picture is written once.
            shown = pictures.setdefault(id(prompt.image), len(pictures))
            tensors[_QUESTION.format(shown)] = torch.from_numpy(np.array(prompt.image))
        rows.append(
            {
                "id": prompt.id,
                "prompt": prompt.text,
                "task": prompt.task,
                "grid": list(prompt.grid) if prompt.grid else None,
                "columns": json.dumps(prompt.columns, ensure_ascii=False, default=str),
                "group": request.group,
                "index": request.index,
                "seed": request.seed,
                "answer": sample.text,
                "finish_reason": sample.finish_reason,
                "weight_version": sample.weight_version,
                "length": sample.stream.length,
                "question_picture": shown,
                "reward": None if rewards is None else rewards[number],
            }
        )
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / TENSORS)
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / TABLE)


def load_rollouts(folder: Path) -> list[Sample]:
    """The samples that ``save_rollouts`` wrote, in their order; those of a group share their prompt.

    Raises:
        DinaError: a file is missing or damaged, or the two do not belong together.
    """
    try:
        rows = pq.read_table(folder / TABLE, schema=_SCHEMA).to_pylist()
        tensors = load_file(folder / TENSORS)
        return list(_samples(rows, tensors))
    except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException, SafetensorError) as error:
        raise DinaError(f"The saved rollouts in {folder} cannot be read: {error}") from error


def _samples(rows: Sequence[dict[str, Any]], tensors: dict[str, Tensor]) -> Iterator[Sample]:
    names = ("text_ids", "codes", "actions", "logps", "entropies")
    lengths = [row["length"] for row in rows]
    parts = {name: tensors[name].split(lengths) for name in names}
    prompts: dict[tuple[str, int], Prompt] = {}
    for number, row in enumerate(rows):
        prompt = prompts.setdefault((row["id"], row["group"]), _prompt(row, tensors))
        ids, codes, actions = (parts[name][number][None] for name in names[:3])
        picture = tensors.get(_PICTURE.format(number))
        yield Sample(
            request=Request(prompt, row["seed"], row["group"], row["index"]),
            stream=TokenStream(ids, codes, torch.ones_like(ids), actions),
            logps=parts["logps"][number],
            entropies=parts["entropies"][number],
            image=None if picture is None else picture.numpy(),
            text=row["answer"],
            weight_version=row["weight_version"],
            finish_reason=row["finish_reason"],
        )


def _prompt(row: dict[str, Any], tensors: dict[str, Tensor]) -> Prompt:
    shown = row["question_picture"]
    return Prompt(
        id=row["id"],
        text=row["prompt"],
        task=row["task"],
        grid=tuple(row["grid"]) if row["grid"] else None,
        image=None if shown is None else tensors[_QUESTION.format(shown)].numpy(),
        columns=json.loads(row["columns"]),
    )


class Replay:
    """Gives out saved samples where the rollout workers would have drawn new ones.

    Args:
        folder: one saved batch, used for every step, or a run's ``rollouts/`` with its ``step_<n>``, used in turn.

    Raises:
        DinaError: there is no saved batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folders = [folder] if (folder / TABLE).is_file() else sorted(folder.glob("step_*"))
        if not self.folders:
            raise DinaError(
                f"rollout.replay: {folder} holds no saved rollouts (neither {TABLE} nor step_*/); save some with "
                "run.save_rollouts=1"
            )

    def batch(self, number: int, size: int) -> list[Sample]:
        """The samples of step ``number``, counted from 1; the folders are used in turn.

        Raises:
            DinaError: it has not ``size`` samples, or is damaged.
        """
        folder = self.folders[(number - 1) % len(self.folders)]
        samples = load_rollouts(folder)
        if len(samples) != size:
            raise DinaError(
                f"{folder} holds {len(samples)} samples, but a step of this recipe has {size} "
                "(algorithm.prompts_per_step × num_generations)"
            )
        return samples
