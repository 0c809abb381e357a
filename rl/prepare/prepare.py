"""``dina prepare``: merges data, leaves out copies and what the base model always or never gets right.

The recipe of LongCat-Next's RL data (section 9.2), in three passes over the sources: fingerprints (``rows.jsonl``),
rollouts (``rollouts.jsonl``), and the rows that stay. A pass that was killed goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dina.errors import DinaError
from dina.rewards.registry import load_object
from dina.rewards.suite import RewardSuite
from dina.rl.data import to_prompt
from dina.rl.engines import Engine, open_engine
from dina.rl.prepare.config import PrepareRecipe, SourceConfig
from dina.rl.prepare.duplicates import Fingerprint, find_copies
from dina.rl.prepare.report import Key, PrepareReport, Verdict, judge_scores
from dina.rl.prepare.row_log import RowLog
from dina.rl.prepare.rows import PreparedRow, write_jsonl, write_parquet
from dina.rl.prompt_files import Row, read_rows
from dina.rl.recipe.load import dump_recipe
from dina.rl.roles import rollout_sampling
from dina.rollout.protocol import Prompt, Request, derive_seed

_SCANNED_AT_ONCE = 64
Advance = Callable[[int], None]


@dataclass(frozen=True)
class _SourceRow:
    """A row of a source, not checked yet."""

    source: SourceConfig
    number: int
    place: str
    values: Row

    @property
    def key(self) -> Key:
        return self.source.label, self.number


def prepare(
    recipe: PrepareRecipe, *, opener: Callable[[], Engine] | None = None, console: Console | None = None
) -> PrepareReport:
    """Runs a recipe to its end, or goes on with it, and returns what became of every row.

    The folder ``recipe.output_dir`` gets ``prepared.parquet`` or ``prepared.jsonl``, which ``dina train`` takes,
    ``dropped.jsonl`` (each row that went, and why) and ``report.json``.

    Args:
        opener: opens what draws the rollouts; by default the recipe's engine. It is closed at the end.
        console: where progress is shown; nowhere without it.

    Raises:
        DinaError: the folder holds another recipe's work, a row is wrong and ``skip_invalid`` is off, no row stays, or
            the model or a reward is unusable.
    """
    folder = Path(recipe.output_dir)
    _claim(folder, recipe)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    work = _Preparation(recipe, folder, console)
    scanned = work.scan()
    verdicts, disputed = work.without_copies(scanned)
    verdicts |= work.rollouts(
        {key: scanned[key]["fingerprint"] for key in scanned if key not in verdicts},
        opener
        or partial(
            open_engine, Path(recipe.model.path), recipe.rollout, recipe.dtype, recipe.device, recipe.threads
        ),
    )
    report = PrepareReport.of(recipe, verdicts, disputed)
    report.save(folder / "report.json")
    work.write(verdicts, scanned)
    return report


class _Preparation:
    """The passes, each with a log of what it has done already."""

    def __init__(self, recipe: PrepareRecipe, folder: Path, console: Console | None) -> None:
        self.recipe, self.folder, self.console = recipe, folder, console
        name = recipe.renderer
        self.renderer = load_object(name, what=f"renderer {name!r}") if name else None
        self.read, self.drawn = RowLog(folder / "rows.jsonl"), RowLog(folder / "rollouts.jsonl")

    def scan(self) -> dict[Key, Row]:
        """Reads every row once: its ``fingerprint``, or the ``problem`` it has."""
        lines = list(self.read)
        known = _by_key(lines)
        if lines and "complete" in lines[-1]:
            return known
        new = (row for row in self._rows() if row.key not in known)
        with self._progress("reading rows", None) as advance:
            for part in _parts(new, _SCANNED_AT_ONCE):
                found = [self._fingerprint(row) for row in part]
                self.read.append(found)
                known |= _by_key(found)
                advance(len(part))
        self.read.append([{"complete": True}])
        return known

    def without_copies(self, scanned: dict[Key, Row]) -> tuple[dict[Key, Verdict], int]:
        """Verdicts on rows of no use and on copies, and the number of disputed rows."""
        verdicts = {
            k: Verdict("invalid", detail=row["problem"]) for k, row in scanned.items() if "problem" in row
        }
        keys = [key for key in scanned if key not in verdicts]
        rule = self.recipe.duplicates
        prints = [Fingerprint(**scanned[key]["fingerprint"]) for key in keys]
        copies = find_copies(prints, rule.image_distance, rule.color_tolerance)
        for key, original in zip(keys, copies.original, strict=True):
            if original is not None:
                source, number = keys[original]
                verdicts[key] = Verdict("duplicate", detail=f"of {source}, row {number}")
        return verdicts, len(copies.disputed)

    def rollouts(self, rows: dict[Key, Row], opener: Callable[[], Engine]) -> dict[Key, Verdict]:
        """Draws and scores the rollouts that are missing; verdicts on all ``rows`` (key -> fingerprint)."""
        done = _by_key(self.drawn)
        missing = {key for key in rows if key not in done}
        if missing:
            engine = opener()
            suite = RewardSuite([reward.spec() for reward in self.recipe.rewards])
            try:
                size = max(1, self.recipe.rollout.batch_size // self.recipe.num_rollouts)
                with self._progress("drawing rollouts", len(missing)) as advance:
                    for part in _parts((row for row in self._rows() if row.key in missing), size):
                        found = self._draw(engine, suite, part, rows)
                        self.drawn.append(found)
                        done |= _by_key(found)
                        advance(len(part))
            finally:
                engine.close()
                suite.close()
        right, wrong = self.recipe.right, self.recipe.wrong
        return {
            k: judge_scores(done[k].get("scores", []), right, wrong, done[k].get("problem")) for k in rows
        }

    def write(self, verdicts: dict[Key, Verdict], scanned: dict[Key, Row]) -> None:
        """Writes the list of the rows that went, and the rows that stay."""
        dropped = [
            {"source": key[0], "row": key[1], **asdict(verdict)}
            for key, verdict in sorted(verdicts.items())
            if verdict.outcome != "kept"
        ]
        aside = self.folder / "dropped.jsonl.tmp"
        aside.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in dropped), encoding="utf-8"
        )
        os.replace(aside, self.folder / "dropped.jsonl")
        if len(dropped) == len(verdicts):
            raise DinaError(f"Not one of the {len(verdicts)} rows stays; see {self.folder / 'dropped.jsonl'}")
        writer = write_parquet if self.recipe.format == "parquet" else write_jsonl
        writer(self.folder, _Kept(self, verdicts, scanned))

    def prepared(self, row: _SourceRow, verdict: Verdict, image_hash: str) -> PreparedRow:
        assert verdict.pass_rate is not None
        provenance = {"source": row.source.label, "row": row.number, "image_hash": image_hash}
        return PreparedRow(
            self._prompt(row), row.values, Path(row.source.path), verdict.pass_rate, provenance
        )

    def _rows(self) -> Iterator[_SourceRow]:
        for source in self.recipe.sources:
            theirs = {name: ours for ours, name in source.columns.items()}
            rows = read_rows(Path(source.path))
            for number, (place, row) in enumerate(islice(rows, source.limit), start=1):
                values = {theirs.get(name, name): value for name, value in row.items()}
                if source.task and "task" not in values:
                    values["task"] = source.task
                yield _SourceRow(source, number, place, values)

    def _prompt(self, row: _SourceRow) -> Prompt:
        return to_prompt(
            row.values, row.place, Path(row.source.path), row.number, self.renderer, self.recipe.grid
        )

    def _fingerprint(self, row: _SourceRow) -> Row:
        found: Row = {"source": row.source.label, "row": row.number}
        try:
            return found | {"fingerprint": asdict(Fingerprint.of(self._prompt(row)))}
        except DinaError as error:
            return found | {"problem": self._skip(error)}

    def _draw(
        self, engine: Engine, suite: RewardSuite, rows: list[_SourceRow], prints: dict[Key, Row]
    ) -> list[Row]:
        """Rollouts of a few rows, scored."""
        sampling, count = rollout_sampling(self.recipe.rollout), self.recipe.num_rollouts
        found: list[Row] = [{"source": row.source.label, "row": row.number} for row in rows]
        requests = []
        for group, row in enumerate(rows):
            prompt, fingerprint = self._prompt(row), prints[row.key]
            try:
                engine.check_lengths([prompt], sampling)
            except DinaError as error:
                found[group]["problem"] = self._skip(error)
                continue
            # Seeds follow from what is asked, so the same row gives the same rollouts wherever it lies.
            parts = (prompt.text, fingerprint["image_hash"], fingerprint["colors"])
            requests += [
                Request(prompt, derive_seed(self.recipe.seed, *parts, k), group, k) for k in range(count)
            ]
        samples = sorted(
            engine.generate(requests, sampling), key=lambda s: (s.request.group, s.request.index)
        )
        scored = suite.score(samples)
        for sample, score in zip(samples, scored.total, strict=True):
            row_found = found[sample.request.group]
            row_found.setdefault("scores", []).append(score)
            row_found.setdefault("answers", []).append(sample.text)
        return found

    def _skip(self, error: DinaError) -> str:
        if not self.recipe.skip_invalid:
            raise DinaError(f"{error} (skip_invalid=true leaves such rows out)") from error
        return str(error)

    @contextmanager
    def _progress(self, text: str, total: int | None) -> Iterator[Advance]:
        if self.console is None:
            yield lambda _: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda count: bar.advance(task, count)


@dataclass(frozen=True)
class _Kept:
    """The rows that stay; they are read anew for every iteration, as they may not fit into memory."""

    preparation: _Preparation
    verdicts: dict[Key, Verdict]
    scanned: dict[Key, Row]

    def __iter__(self) -> Iterator[PreparedRow]:
        for row in self.preparation._rows():
            verdict = self.verdicts[row.key]
            if verdict.outcome == "kept":
                image_hash = self.scanned[row.key]["fingerprint"]["image_hash"]
                yield self.preparation.prepared(row, verdict, image_hash)


def _claim(folder: Path, recipe: PrepareRecipe) -> None:
    """Makes the folder this recipe's, or finds that it is already."""
    text, file = dump_recipe(recipe), folder / "config.yaml"
    if not file.exists() and any(folder.glob("*")):
        raise DinaError(f"{folder} holds other files; choose another output_dir")
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise DinaError(
            f"{folder} was begun with another recipe ({file}); go on with that one, or choose another output_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    return {(row["source"], row["row"]): row for row in rows if "source" in row}


def _parts(rows: Iterable[_SourceRow], size: int) -> Iterator[list[_SourceRow]]:
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part
