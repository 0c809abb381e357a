"""lmms-eval runs a checkpoint on a local task, and scores it as ``dina evaluate`` does. Skipped without lmms-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from dina.eval.benchmark import run_benchmark
from dina.eval.evaluate import open_torch_engine
from dina.eval.judge import RewardJudge
from dina.recipes.scenes.world import render_json
from dina.rl.data import load_prompts
from dina.rl.recipe.load import RECIPES

pytestmark = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")

CHECKPOINT = RECIPES / "scenes" / "checkpoint"
TASK = """\
task: scenes_tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function hooks.picture
doc_to_text: prompt
doc_to_target: answer
process_results: !function hooks.results
generation_kwargs: {{max_new_tokens: 16, until: ["."]}}
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
HOOKS = """\
from pathlib import Path

from PIL import Image

from dina.rewards.vqa import normalise_answer


def picture(doc):
    return [Image.open(Path(__file__).parent / doc["image"])]


def results(doc, said):
    return {"right": float(normalise_answer(said[0]) == normalise_answer(doc["answer"]))}
"""


def test_a_local_task_scores_as_dina_evaluate_does(tmp_path: Path) -> None:
    lines = (RECIPES / "scenes" / "prompts" / "vqa_dev.jsonl").read_text().splitlines()[::10]
    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows):
        Image.fromarray(render_json(row.pop("scene"))).save(tmp_path / f"{number}.png")
        row["image"] = f"{number}.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scenes_tiny.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "hooks.py").write_text(HOOKS)
    program = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "dina",
        "--model_args",
        f"pretrained={CHECKPOINT}",
    ]
    program += ["--tasks", "scenes_tiny", "--include_path", str(tmp_path), "--device", "cpu"]
    program += ["--batch_size", "4", "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run(program, check=True, env=environment, cwd=tmp_path)
    [file] = (tmp_path / "out").rglob("*results.json")
    found = json.loads(file.read_text())["results"]["scenes_tiny"]["right,none"]

    engine = open_torch_engine(CHECKPOINT)
    judge = RewardJudge()
    expected = run_benchmark(engine, load_prompts(tmp_path / "rows.jsonl"), judge).category("vqa").mean
    judge.close()
    assert found == pytest.approx(expected)
    assert 0 < found < 1
