from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import TrainerCallback

from dina.errors import DinaError
from dina.model import sft
from dina.model.build import new_checkpoint
from dina.model.checkpoint import Checkpoint, load_checkpoint
from dina.model.sft import TrainingStoppedError, run_sft
from dina.model.sft_data import Collator, PlannedRows, encode_rows, load_rows, plan_batches
from tests.model.sft_world import recipe, rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = recipe(folder)
    checkpoint = new_checkpoint(made.model.new)
    loaded = load_rows(made.data.train)
    return checkpoint, encode_rows(loaded, checkpoint.processor, checkpoint.visual_tokenizer, context=64)


def test_loss_stands_exactly_on_what_the_assistant_says_and_draws(world):
    checkpoint, encoded = world
    layout, roles = checkpoint.processor.layout, checkpoint.processor.roles
    drawing, answer = PlannedRows(encoded, 3)[1], PlannedRows(encoded, 3)[2]
    ids = drawing["input_ids"].tolist()
    start = ids.index(layout.start)
    assert ids[start:] == [
        layout.start,
        layout.pad,
        layout.pad,
        layout.newline,
        layout.pad,
        layout.pad,
        layout.end,
        2,
    ]
    wanted = np.full((len(ids), 3), -100)
    patches = [start + 1, start + 2, start + 4, start + 5]
    wanted[patches] = drawing["codes"][patches]
    wanted[start + 6] = [8, 8, 4]
    assert (drawing["codes"][patches] >= 0).all() and (drawing["code_labels"] == wanted).all()
    assert drawing["labels"].tolist() == [-100] * (len(ids) - 1) + [2]

    ids = answer["input_ids"].tolist()
    assert ids[:7] == [roles["user"], layout.start, *[layout.pad] * 4, layout.end]
    spoken = ids.index(roles["assistant"]) + 1
    assert answer["labels"].tolist() == [-100] * spoken + ids[spoken:] and ids[-1] == 2
    assert checkpoint.processor.decode_text(ids[spoken:]) == "3"
    assert (answer["code_labels"] == -100).all() and (answer["codes"][2:6] >= 0).all()


def test_codes_are_those_of_the_picture(world):
    checkpoint, encoded = world
    example = PlannedRows(encoded, 3)[0]
    codes = example["codes"][example["codes"][:, 0] >= 0]
    assert codes.shape == (6, 3)


def test_loss_is_the_sum_of_the_specification(world):
    checkpoint, encoded = world
    batch = Collator(pad_id=3)([PlannedRows(encoded, 3)[i] for i in range(4)])
    weights, model = torch.tensor([1.0, 0.5, 0.25]), checkpoint.model
    with torch.no_grad():
        loss = model(**batch, code_loss_weight=0.25, level_weights=weights).loss
        hidden = model(**{k: v for k, v in batch.items() if "labels" not in k}).last_hidden_state
        total, count = 0.0, 0
        for b, t in (batch["labels"] != -100).nonzero().tolist():
            total += F.cross_entropy(model.text_logits(hidden[b, t - 1]), batch["labels"][b, t])
            count += 1
        table = model.model.embed_tokens.weight
        for b, t in (batch["code_labels"][..., 0] != -100).nonzero().tolist():
            wanted, codes = batch["code_labels"][b, t], batch["codes"][b, t]
            rows = table[(codes + torch.tensor([278, 286, 294])).clamp_min(0)] * (codes[0] >= 0)
            logits = model.visual_head(hidden[None, b, t - 1], rows[None])
            levels = [F.cross_entropy(z, wanted[None, i]) for i, z in enumerate(logits)]
            total += 0.25 * sum(w * x for w, x in zip(weights, levels, strict=True))
            count += 1
    torch.testing.assert_close(loss, total / count)


def test_padding_does_not_change_the_loss(world):
    checkpoint, encoded = world
    examples = [PlannedRows(encoded, 3)[i] for i in range(3)]
    together = Collator(pad_id=3)(examples)
    alone = [Collator(pad_id=3)([example]) for example in examples]
    counts = [int((b["labels"] != -100).sum() + (b["code_labels"][..., 0] != -100).sum()) for b in alone]
    with torch.no_grad():
        losses = [checkpoint.model(**b).loss * n for b, n in zip(alone, counts, strict=True)]
        loss = checkpoint.model(**together).loss
    torch.testing.assert_close(loss, sum(losses) / sum(counts))


def test_a_dropped_prompt_starts_at_the_size_tag(world):
    checkpoint, encoded = world
    plan = plan_batches(encoded, 6, 4, {}, drop_prompt=1.0, seed=0)
    rows = PlannedRows(encoded, 3, plan)
    for position, row in enumerate(plan.rows):
        whole, example = PlannedRows(encoded, 3)[int(row)], rows[position]
        if encoded[int(row)]["task"] == 1:
            assert (example["input_ids"] == whole["input_ids"]).all()
        else:
            assert example["input_ids"][0] == checkpoint.processor.layout.size_start
            assert (example["code_labels"] == whole["code_labels"][-len(example["codes"]) :]).all()


def test_every_batch_has_the_mixture_and_every_pass_every_row(world):
    _, encoded = world
    plan = plan_batches(encoded, 8, 4, {"t2i": 0.5, "vqa": 0.5}, drop_prompt=0.0, seed=1)
    tasks = np.asarray(encoded["task"])[plan.rows].reshape(8, 4)
    assert (tasks.sum(1) == 2).all()
    drawn = plan.rows[np.asarray(encoded["task"])[plan.rows] == 0]
    assert set(np.bincount(drawn, minlength=12)[np.asarray(encoded["task"]) == 0]) == {2}
    again = plan_batches(encoded, 8, 4, {"t2i": 0.5, "vqa": 0.5}, drop_prompt=0.0, seed=1)
    assert (again.rows == plan.rows).all()


def test_alignment_leaves_the_backbone_bit_for_bit(tmp_path):
    stage = {
        "name": "align",
        "trainable": "alignment",
        "max_steps": 3,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
    }
    made = recipe(tmp_path, stages=[stage])
    before, after = new_checkpoint(made.model.new).model, load_checkpoint(run_sft(made)).model
    changed = {
        name
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert all(n.startswith(("visual_head", "model.visual_tokenizer", "model.embed_tokens")) for n in changed)
    assert {"visual_head.hidden_proj.weight", "model.embed_tokens.weight"} <= changed
    table, trained = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert torch.equal(table[:270], trained[:270]) and not torch.equal(table[278:], trained[278:])


def interrupt_at(step: int) -> type[TrainerCallback]:
    class Interrupt(sft._StopOnInterrupt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)
            super().on_step_end(args, state, control, **kwargs)

    return Interrupt


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_resumes_with_the_same_numbers(tmp_path, monkeypatch, optimizer):
    stages = [
        {"name": "align", "trainable": "alignment", "max_steps": 2, "warmup_steps": 0, "learning_rate": 1e-2},
        {"name": "sft", "max_steps": 5, "warmup_steps": 1, "learning_rate": 1e-2},
    ]
    fields = {"stages": stages, "save_steps": 100, "optim": {"name": optimizer}}
    whole = run_sft(recipe(tmp_path, **fields))
    broken = recipe(tmp_path, **fields, output_dir=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        patch.setattr(sft, "_StopOnInterrupt", interrupt_at(3))
        with pytest.raises(TrainingStoppedError, match="stage sft at step 3"):
            run_sft(broken)
    with pytest.raises(DinaError, match="already holds a run"):
        run_sft(broken)
    resumed = run_sft(broken, resume=True)
    first, second = (load_checkpoint(path).model.state_dict() for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = [_losses(path.parent) for path in (whole, resumed)]
    assert logs[0] == logs[1] and [line[0] for line in logs[0]] == list(range(1, 8))


def _losses(run: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["stage"], line["loss"]) for line in lines if "loss" in line]


def test_lora_trains_adapters_and_merges_them(tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["visual_head"]}
    made = recipe(tmp_path, lora=lora)
    before, after = new_checkpoint(made.model.new).model, load_checkpoint(run_sft(made)).model
    changed = {
        name
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert "visual_head.hidden_proj.weight" in changed
    assert all("q_proj" in name or name.startswith("visual_head") for name in changed)


def test_evaluation_loss_is_logged_and_a_checkpoint_can_be_trained_on(tmp_path):
    data = {"train": [str(tmp_path / "rows")], "eval_rows": 3}
    final = run_sft(recipe(tmp_path, data=data, eval_steps=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    assert all({"eval_text_loss", "eval_code_loss"} <= set(line) for line in lines if "eval_loss" in line)
    more = recipe(
        tmp_path, model={"checkpoint": str(final)}, output_dir=str(tmp_path / "more"), save_dtype="float16"
    )
    assert isinstance(load_checkpoint(run_sft(more)), Checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train": ["nowhere"]}}, "nowhere is not there"),
        ({"model": {"checkpoint": "nowhere"}}, "nowhere"),
        ({"data": {"train": ["rows"], "task_weights": {"ocr": 1}}}, "unknown task"),
        ({"data": {"train": ["rows"], "eval_rows": 50}}, "only 12 rows"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, change, message):
    recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DinaError, match=message):
        run_sft(recipe(tmp_path, **change))


def test_rows_longer_than_the_context_are_an_error(world, tmp_path):
    checkpoint, _ = world
    loaded = load_rows(recipe(tmp_path).data.train)
    with pytest.raises(DinaError, match="context is 20"):
        encode_rows(loaded, checkpoint.processor, checkpoint.visual_tokenizer, context=20)


def test_an_unknown_key_is_an_error(tmp_path):
    with pytest.raises(ValidationError, match="batchsize"):
        recipe(tmp_path, batchsize=3)


def test_a_picture_folder_of_drawings_needs_no_task(tmp_path):
    for name, row in zip(("a.png", "b.png"), rows(2), strict=True):
        row["image"].save(tmp_path / name)
    lines = [json.dumps({"file_name": name, "prompt": f"picture {name}"}) for name in ("a.png", "b.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    loaded = load_rows([tmp_path])
    assert sorted(loaded["prompt"]) == ["picture a.png", "picture b.png"]
    assert set(loaded["task"]) == {"t2i"} and set(loaded["answer"]) == {None}
