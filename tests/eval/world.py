"""A tiny stand-in for a model and a judge, and synthetic run folders. Nothing here is learned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from dina.eval.judge import Verdict
from dina.eval.pictures import COLOURS
from dina.eval.result import SIX
from dina.eval.sample_log import SampleRecord, ScoreRecord, append_records, picture_path
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rollout.protocol import Prompt, Request, Sample

NAMES = ("red", "green", "blue", "yellow", "purple", "orange")


def prompts(per_tag: int = 3, tags: Sequence[str] = (*SIX, "text_rendering", "vqa")) -> list[Prompt]:
    out = []
    for tag in tags:
        for i in range(per_tag):
            colour = NAMES[(i + len(tag)) % len(NAMES)]
            columns = {"tag": tag, "color": colour}
            if tag == "vqa":
                picture = paint(colour, 0)
                out.append(
                    Prompt(
                        f"{tag}-{i}", "What colour is it?", "vqa", None, picture, columns | {"answer": colour}
                    )
                )
            else:
                out.append(
                    Prompt(f"{tag}-{i}", f"a {colour} square, {tag} {i}", "t2i", (8, 8), None, columns)
                )
    return out


def paint(colour: str, seed: int) -> np.ndarray:
    x, y = 4 + seed % 37, 4 + seed // 37 % 37
    picture = np.full((64, 64, 3), (244, 243, 238), dtype=np.uint8)
    picture[y : y + 20, x : x + 20] = COLOURS[colour]
    return picture


class FakeEngine:
    """Paints the wanted colour with probability ``skill``, decided by the request's seed alone."""

    def __init__(self, skill: float, reverse: bool = False) -> None:
        self.skill, self.reverse, self.requests = skill, reverse, []

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Sample]:
        self.requests += requests
        for request in reversed(requests) if self.reverse else requests:
            right = (request.seed % 1000) / 1000 < self.skill
            wanted = request.prompt.columns["color"]
            colour = wanted if right else next(name for name in NAMES if name != wanted)
            sample = empty_sample(request)
            if request.prompt.task == "vqa":
                sample.text = colour
            else:
                sample.image = paint(colour, request.seed)
            yield sample

    def update_weights(self, tensors, version: int) -> None: ...

    def close(self) -> None: ...


class FakeJudge:
    label = "GenEval-style (test detector)"

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Verdict:
        wanted = sample.prompt.columns["color"]
        if sample.image is None:
            return Verdict(float(sample.text == wanted))
        counts = (sample.image == COLOURS[wanted]).all(-1).sum()
        right = counts > 100
        dark = float((sample.image.mean(-1) < 64).mean())
        return Verdict(
            float(right),
            scores={"graded": 1.0 if right else 0.4},
            guards={"dark_share": dark},
            reason="as asked" if right else f"no {wanted} square",
        )


def empty_sample(request: Request, image: np.ndarray | None = None) -> Sample:
    stream = TokenStream.from_prompt([1], torch.full((1, 4), -1))
    return Sample(request, stream, torch.zeros(1, 5), torch.zeros(1, 5), image)


def write_run(folder: Path, steps: int = 60, levels: int = 4, hostile: str = "") -> Path:
    """A run's folder with plausible metrics."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "run": {"name": folder.name, "seed": 3, "note": hostile},
        "algorithm": {"num_generations": 12, "beta": 0.02},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"python": "3.11.2", "torch": "2.14.1", "device": "cpu", "cpu": {"cores": 2, "threads": 1}}
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [json.dumps({"step": step, **_metrics(step, levels, rng)}) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for step in range(10, steps + 1, 10):
        rewards = [0.5, 1.0, 0.25, None, 1.0, 0.75]
        records = [
            SampleRecord(
                step=step,
                row=i,
                id=f"p{i}",
                prompt=f"a {NAMES[i]} square {hostile}",
                seed=step * 7 + i,
                reward=reward,
                scores={"objects": ScoreRecord(reward, "as asked")},
                picture=picture_path(step, i),
            )
            for i, reward in enumerate(rewards)
        ]
        pictures = {r.picture: paint(NAMES[r.row], step * 91 + r.row * 17) for r in records if r.picture}
        append_records(folder, records, pictures)
    return folder


def _metrics(step: int, levels: int, rng: np.random.Generator) -> dict[str, float]:
    rise = 1 - math.exp(-step / 25)
    noise = rng.normal(0, 1, 40)
    reward = 0.55 + 0.22 * rise + 0.03 * noise[0]
    out = {
        "reward": reward,
        "reward_std": 0.21 - 0.05 * rise + 0.01 * noise[1],
        "frac_reward_zero_std": max(0.0, 0.08 + 0.2 * rise + 0.05 * noise[2]),
        "rewards/objects/mean": reward + 0.02 * noise[3],
        "rewards/objects/fail_rate": 0.0,
        "rewards/ocr/mean": 0.35 + 0.1 * rise + 0.03 * noise[4],
        "rewards/objects/count": 0.7 + 0.15 * rise + 0.02 * noise[5],
        "rewards/objects/color": 0.8 + 0.1 * rise + 0.02 * noise[6],
        "rewards/objects/position": 0.6 + 0.2 * rise + 0.02 * noise[7],
        "rewards/objects/precision": 0.75 + 0.1 * rise + 0.02 * noise[8],
        "entropy": 0.06 - 0.02 * rise + 0.002 * noise[9],
        "text/entropy": 0.01,
        "kl": 0.012 * rise + 0.0006 * abs(noise[10]),
        "grad_norm": 0.4 * math.exp(0.3 * noise[11]),
        "policy_loss": 0.02 * noise[12],
        "learning_rate": 1e-4 * min(1, step / 5),
        "mismatch/max_prob_diff": 1e-6 * math.exp(noise[13]),
        "mismatch/frac_over_0.01": 0.0,
        "mismatch/frac_over_0.1": 0.0,
        "filter/entropy/dropped": max(0.0, round(2 + 1.5 * noise[14])) / 192,
        "filter/mismatch/dropped": 0.0,
        "filter/entropy/reward_kept": reward,
        "filter/entropy/reward_dropped": reward - 0.2 + 0.1 * noise[15],
        "filter/kept": 1 - max(0.0, round(2 + 1.5 * noise[14])) / 192,
        "clip_ratio/region_mean": 0.004 * rise,
        "updates/skipped": 0.0,
        "guards/dark_share": 0.03 + 0.002 * noise[16],
        "guards/edge_density": 0.08 + 0.004 * noise[17],
        "guards/colour_entropy": 1.4 + 0.05 * noise[18],
        "step_time": 6 + 0.8 * noise[19],
        "completions/mean_length": 78 + 0.5 * noise[20],
    }
    for level in range(levels):
        out[f"level_{level}/entropy"] = 0.16 / (1 + 1.6 * level) * (1 - 0.5 * rise) + 0.003 * abs(
            noise[21 + level]
        )
        out[f"level_{level}/clip_ratio"] = 0.012 / (1 + level) * rise + 0.0008 * abs(noise[25 + level])
        out[f"level_{level}/logp_diff"] = 1e-7 * (1 + level) * math.exp(0.3 * noise[29 + level])
        out[f"level_{level}/kl"] = 0.01 / (1 + level) * rise
    return out
