"""How fast rollouts are drawn: ``python -m dina.rollout.bench``.

One run measures, for each model and batch size, generated positions per second of

* ``vllm``: the vLLM engine, drawing pictures with all levels, log-probabilities and entropies;
* ``torch``: the reference loop on the same requests;
* ``backbone``: the same backbone alone in vLLM, greedy text of the same length without log-probabilities. The
  codes, the depth head, and the statistics are left out, so this is a bound that no engine can reach.

The three take turns, so that a busy machine slows all of them, and the median over the turns is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dina.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dina.model.config import DinaConfig
from dina.model.generation import GenerationRequest, generate
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.rollout.torch_engine import autocast
from dina.rollout.vllm_engine import VllmEngine

GRID = (8, 8)
POSITIONS = GRID[0] * (GRID[1] + 1)
CAPTION = "a red star to the left of a blue circle"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dina.rollout.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("recipes/scenes/checkpoint"))
    parser.add_argument("--models", nargs="+", choices=["small", "large"], default=["small", "large"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the backbones")
    parser.add_argument("--json", type=Path, default=Path("rollout_bench.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            folder = options.checkpoint if name == "small" else Path(scratch) / "large"
            if name == "large":
                save_large(options.checkpoint, folder)
            rows += measure(name, folder, Path(scratch), options)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    print(table(rows))


def save_large(source: Path, folder: Path, layers: int = 12) -> None:
    """The checkpoint at ``source`` with ``large_config`` and random weights."""
    checkpoint = load_checkpoint(source)
    torch.manual_seed(0)
    model = DinaForConditionalGeneration(large_config(checkpoint.model.config, layers)).eval()
    save_checkpoint(Checkpoint(model, checkpoint.processor, checkpoint.visual_tokenizer), folder)


def large_config(config: DinaConfig, layers: int = 12) -> DinaConfig:
    """The same vocabulary and codes with a backbone of width 768 and two depth layers of 256."""
    fields = config.to_dict()
    fields["text_config"] |= {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "layer_types": None,
    }
    fields |= {
        "visual_embedding_layer_intermediate_size": 1536,
        "image_head_transformer_layers": 2,
        "image_head_transformer_dims": 256,
        "image_head_transformer_ffn_scale": 8,
    }
    return DinaConfig(**fields)


def measure(name: str, folder: Path, scratch: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per batch size."""
    largest = max(options.batch_sizes)
    model = load_checkpoint(folder).model
    sampling = SamplingParams()
    settings = {"threads": options.threads, "dtype": options.dtype, "compile": options.compile}
    with ExitStack() as stack:
        engine = VllmEngine(folder, max_num_seqs=largest, **settings)
        stack.callback(engine.close)
        backbone = open_backbone(model.config, scratch / f"{name}-backbone", largest, options)
        stack.callback(backbone.engine_core.shutdown)
        prompt = engine.codec.processor.drawing_prompt(CAPTION, GRID)
        clock = DepthClock(engine)
        rows = []
        for size in options.batch_sizes:
            requests = [GenerationRequest(prompt, seed, GRID) for seed in range(size)]
            runs: dict[str, Callable[[], Any]] = {
                "vllm": partial(draw_all, engine.continue_streams, requests, sampling),
                "torch": partial(draw_all, partial(generate, model), requests, sampling, options.dtype),
                "backbone": partial(draw_text, backbone, prompt.text_ids[0].tolist(), size),
            }
            row = {"model": name, "batch": size, **measure_rates(runs, size, options.repeats, clock)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


@dataclass
class Turns:
    """Seconds of each repetition of one run, on the clock and of the process's CPUs."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def take_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Turns]:
    """Times ``runs`` one after the other, again and again, so that a busy machine slows all of them.

    Each runs once beforehand, untimed.
    """
    for run in runs.values():
        run()
    turns = {name: Turns() for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            turns[name].wall.append(time.perf_counter() - wall)
            turns[name].cpu.append(time.process_time() - cpu)
    return turns


def measure_rates(
    runs: dict[str, Callable[[], Any]], size: int, repeats: int, clock: DepthClock
) -> dict[str, float]:
    """Median positions per second of each run, of the process's CPU time too, and the depth head's share."""
    shares = []

    def with_clock(run: Callable[[], Any]) -> None:
        start = time.perf_counter()
        with clock:
            run()
        shares.append(clock.seconds / (time.perf_counter() - start))

    turns = take_turns(runs | {"vllm": partial(with_clock, runs["vllm"])}, repeats)
    rate = {name: size * POSITIONS / statistics.median(turn.wall) for name, turn in turns.items()}
    work = {f"{name}_cpu": size * POSITIONS / statistics.median(turn.cpu) for name, turn in turns.items()}
    return {
        **{name: round(value, 1) for name, value in (rate | work).items()},
        "of_backbone": round(rate["vllm"] / rate["backbone"], 3),
        "of_backbone_cpu": round(work["vllm_cpu"] / work["backbone_cpu"], 3),
        "of_torch": round(rate["vllm"] / rate["torch"], 3),
        "of_torch_cpu": round(work["vllm_cpu"] / work["torch_cpu"], 3),
        "depth_share": round(statistics.median(shares[1:]), 3),
    }


class DepthClock(AbstractContextManager["DepthClock"]):
    """Seconds that the engine spends drawing codes: depth head, noise and statistics."""

    def __init__(self, engine: VllmEngine) -> None:
        self.runner = engine.llm.model_executor.driver_worker.worker.model_runner
        self.seconds = 0.0

    def __enter__(self) -> DepthClock:
        draw, self.seconds = self.runner._draw_patches, 0.0

        def timed(*args: Any) -> None:
            start = time.perf_counter()
            draw(*args)
            self.seconds += time.perf_counter() - start

        self.runner._draw_patches = timed
        return self

    def __exit__(self, *error: object) -> None:
        del self.runner._draw_patches


def open_backbone(config: DinaConfig, folder: Path, batch: int, options: argparse.Namespace) -> Any:
    """vLLM on the bare text model with random weights, which take as long as others."""
    from transformers import AutoModelForCausalLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    text_config: Any = config.text_config
    with torch.device("meta"):
        architecture = type(AutoModelForCausalLM.from_config(text_config)).__name__
    text_config.architectures = [architecture]
    text_config.save_pretrained(folder)
    args = EngineArgs(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=options.dtype,
        enforce_eager=not options.compile,
        max_model_len=text_config.max_position_embeddings,
        max_num_seqs=batch,
        kv_cache_memory_bytes=2**29,
        disable_log_stats=True,
        async_scheduling=False,
    )
    return LLMEngine.from_engine_args(args)


def draw_all(
    draw: Callable[..., Iterator[Any]],
    requests: list[GenerationRequest],
    sampling: SamplingParams,
    dtype: str = "float32",
) -> None:
    with autocast(torch.device("cpu"), dtype):
        for _ in draw(requests, sampling):
            pass


def draw_text(llm: Any, prompt: list[int], count: int) -> None:
    """``count`` greedy continuations of as many positions as a picture has."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = VllmSamplingParams(
        temperature=0,
        max_tokens=POSITIONS,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    for index in range(count):
        llm.add_request(str(index), {"prompt_token_ids": prompt}, params)
    while llm.has_unfinished_requests():
        llm.step()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "positions/s          vllm    torch  backbone  vllm/backbone  vllm/torch  depth share",
    ]
    for row in rows:
        lines.append(
            f"{row['model']:<6} batch {row['batch']:<3} {row['vllm']:9.0f} {row['torch']:8.0f} {row['backbone']:9.0f}"
            f" {row['of_backbone']:14.2f} {row['of_torch']:11.2f} {row['depth_share']:12.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
