"""The rollout engines' own benchmark (``dina.rollout.bench``), in a process of its own: it opens several engines."""

from __future__ import annotations

import json
import subprocess
import sys

from dina.errors import DinaError
from dina.rl.bench.options import Options, Row
from dina.rollout.vllm_compat import version_problem


def measure_generation(options: Options) -> list[Row]:
    """One row per model and batch size.

    Raises:
        DinaError: vLLM is not there, or the benchmark failed.
    """
    if problem := version_problem():
        raise DinaError(f"the generation part compares with vLLM: {problem}; leave it out with --only")
    out = options.scratch / "generation.json"
    command = [sys.executable, "-m", "dina.rollout.bench", "--json", str(out)]
    command += ["--checkpoint", str(options.checkpoint), "--threads", str(options.threads)]
    if options.quick:
        command += ["--models", "small", "--batch-sizes", "4", "--repeats", "1"]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise DinaError("python -m dina.rollout.bench failed; its messages are above")
    rows: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return rows
