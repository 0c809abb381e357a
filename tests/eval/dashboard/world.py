"""A dashboard at work in this process, and runs to show in it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn

from dina.eval.dashboard.live import find_runs
from dina.eval.dashboard.server import Dashboard, listen
from dina.eval.sample_log import (
    FILE,
    FOLDER,
    DropRecord,
    SampleRecord,
    ScoreRecord,
    WorstRecord,
    append_records,
    picture_path,
)
from tests.eval.world import write_run


@contextmanager
def served(paths: Sequence[Path]) -> Iterator[str]:
    """The address of a dashboard on the runs."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(Dashboard(find_runs(paths)).app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def run_with_samples(folder: Path, steps: int = 30) -> Path:
    """A run with a dropped drawing, a failed reward and an answer whose worst action is a token."""
    run = write_run(folder, steps)
    picture = np.full((16, 24, 3), 200, dtype=np.uint8)
    records = [
        SampleRecord(
            steps,
            10,
            "dropped",
            "a red star",
            tag="colors",
            reward=0.75,
            scores={"objects": ScoreRecord(0.75, "the star is blue")},
            picture=picture_path(steps, 10),
            grid=(2, 3),
            entropy=0.4,
            worst=WorstRecord(0.88, 0.93, 0.05, "level_1", 17, 1, 2),
            drops=[DropRecord("mismatch", 0.88, 0.1)],
        ),
        SampleRecord(
            steps,
            11,
            "failed",
            "two circles",
            scores={"ocr": ScoreRecord(None, "the engine is gone", failed=True)},
            worst=WorstRecord(0.0, 0.5, 0.5, "level_0", 9, 0, 0),
        ),
        SampleRecord(
            steps,
            12,
            "said",
            "what is it?",
            task="vqa",
            reward=1.0,
            answer="a blue <b>star</b>",
            worst=WorstRecord(0.2, 0.4, 0.2, "text", 5, token=" blue", span=(2, 6)),
        ),
    ]
    append_records(run, records, {picture_path(steps, 10): picture})
    return run


def long_run(folder: Path, steps: int, samples: int, metrics: int = 80) -> Path:
    """A run of which the metrics have one spike each, and a hundredth of the samples is dropped."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"run: {{max_steps: {steps}}}\n")
    names = ["reward", "reward_std", "entropy", "grad_norm", "filter/kept", "step_time"]
    names += [
        f"level_{level}/{kind}" for level in range(8) for kind in ("entropy", "logp_diff", "clip_ratio")
    ]
    names += [
        f"rewards/r{i}/{kind}" for i in range(10) for kind in ("mean", "std", "applied", "fail_rate", "part")
    ]
    values = np.random.default_rng(0).random((steps, len(names[:metrics]))) * 0.1 + 0.4
    values[steps // 3, :] = 9.0
    with (folder / "metrics.jsonl").open("w") as file:
        for step, row in enumerate(values.tolist(), start=1):
            file.write(json.dumps({"step": step, **dict(zip(names, row, strict=False))}) + "\n")
    (folder / FOLDER).mkdir()
    line = json.dumps(record_of_a_long_run())
    with (folder / FOLDER / FILE).open("w") as file:
        for number in range(samples):
            step = 1 + number * steps // samples
            dropped = (
                '[{"reason": "mismatch", "value": 0.5, "threshold": 0.1}]' if number % 100 == 0 else "[]"
            )
            file.write(
                line.replace('"STEP"', str(step)).replace('"ROW"', str(number)).replace('"DROPS"', dropped)
                + "\n"
            )
    return folder


def record_of_a_long_run() -> dict[str, object]:
    return {
        "step": "STEP",
        "row": "ROW",
        "id": "train-color_attr-260",
        "prompt": "make a picture of a black circle together with a purple square on a plain background",
        "task": "t2i",
        "tag": "color_attr",
        "seed": 3920248689400688701,
        "group": 3,
        "index": 1,
        "weight_version": 17,
        "finish_reason": "stop",
        "reward": 0.5,
        "scores": {"objects": {"score": 0.5, "reason": "circle is purple, wanted black", "failed": False}},
        "answer": None,
        "picture": None,
        "question": None,
        "grid": [8, 8],
        "entropy": 0.031,
        "worst": {
            "difference": 0.0123,
            "p_sampler": 0.5,
            "p_actor": 0.51,
            "channel": "level_2",
            "position": 40,
            "row": 3,
            "column": 4,
            "token": None,
            "span": None,
        },
        "drops": "DROPS",
    }
