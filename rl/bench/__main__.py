"""Measures each part in turn, and writes ``bench.json`` and ``bench.md``: ``python -m dina.rl.bench``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dina.errors import DinaError
from dina.rl.bench.options import Options, Row
from dina.rl.environment import environment
from dina.rl.memory import keep_freed_memory


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: ``module.measure_<name>``, and its table as ``{key of a row: heading}``."""

    title: str
    columns: dict[str, str]

    def table(self, rows: Sequence[Row]) -> str:
        """Markdown."""
        lines = [self.columns.values(), ["---"] * len(self.columns)]
        lines += [[_cell(row[key]) for key in self.columns] for row in rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS = {
    "generation": Part(
        "Generation: positions per second",
        {
            "model": "model",
            "batch": "batch",
            "vllm": "vLLM",
            "torch": "torch",
            "backbone": "backbone alone in vLLM",
            "of_backbone": "vLLM / backbone",
            "of_torch": "vLLM / torch",
            "depth_share": "depth head's share",
        },
    ),
    "learner": Part(
        "Learner: sampled tokens per second of one update, texts only",
        {
            "model": "model",
            "sequences": "sequences",
            "actions": "tokens",
            "dina": "dina",
            "trl": "TRL",
            "ratio": "dina / TRL",
            "ratio_cpu": "by CPU time",
        },
    ),
    "overhead": Part(
        "Loop: seconds of a quickstart step, and the share in none of its phases",
        {
            "runner": "runner",
            "engine": "engine",
            "step": "step",
            "generate": "generate",
            "score": "score",
            "compare": "compare",
            "update": "update",
            "sync": "sync",
            "overhead": "overhead",
        },
    ),
    "sync": Part(
        "Weight sync: learner to one rollout worker",
        {
            "engine": "engine",
            "megabytes": "MB",
            "put": "put, s",
            "load": "load, s",
            "sync_gb_s": "sync, GB/s",
            "copy_gb_s": "copy, GB/s",
            "ratio": "sync / copy",
        },
    ),
    "scaling": Part(
        "Scaling: a reward that waits 0.5 s per sample, 4 reward workers",
        {
            "workers": "rollout workers",
            "mode": "mode",
            "engine": "engine",
            "steps_s": "steps/s",
            "positions_s": "positions/s",
            "speedup": "against the first row",
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dina.rl.bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="little of each, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch in every process")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the recipes that are run"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args(arguments)
    keep_freed_memory()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"quick": options.quick, "environment": environment(), "parts": {}}
    failed = False
    for name in options.only:
        start = time.perf_counter()
        try:
            rows = run_part(name, options.quick, options.threads, options.set)
        except DinaError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        result["parts"][name] = {"seconds": round(time.perf_counter() - start, 1), "rows": rows}
        print(f"{PARTS[name].title}\n\n{PARTS[name].table(rows)}\n", flush=True)
        write(options.out, result)
    return 2 if failed else 0


def run_part(name: str, quick: bool, threads: int, overrides: Sequence[str] = ()) -> list[Row]:
    """The rows of one part.

    Raises:
        DinaError: what it needs is not installed, or does not start.
    """
    with tempfile.TemporaryDirectory() as scratch:
        measure = getattr(importlib.import_module(f"dina.rl.bench.{name}"), f"measure_{name}")
        rows: list[Row] = measure(Options(Path(scratch), quick, threads, overrides))
    return rows


def write(folder: Path, result: dict[str, Any]) -> None:
    (folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sections = [
        f"## {PARTS[name].title}\n\n{PARTS[name].table(part['rows'])}\n"
        for name, part in result["parts"].items()
    ]
    (folder / "bench.md").write_text("\n".join(sections), encoding="utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
