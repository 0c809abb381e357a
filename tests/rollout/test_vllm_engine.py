"""The vLLM engine against the torch reference, under the conditions that make the two differ most: a cache too
small for the batch, prompts computed in parts, and every kind of request at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from dina.errors import DinaError
from dina.model.checkpoint import Checkpoint, save_checkpoint
from dina.model.generation import Generation, GenerationRequest
from dina.model.sampling import SamplingParams
from dina.rl.weight_probe import beginning
from dina.rollout.probe import Tolerance, compare_probe
from dina.rollout.protocol import Prompt, Request
from dina.rollout.torch_engine import TorchEngine
from dina.rollout.vllm_engine import VllmEngine
from dina.rollout.weight_transport import pack_weights, unpack_weights
from tests.rollout.world import (
    by_torch,
    differences,
    mixed_requests,
    question,
    same_sample,
    world_checkpoint,
)

TIGHT = {"max_num_seqs": 32, "max_batched_tokens": 64, "kv_blocks": 8, "block_size": 32}
SAMPLINGS = {
    "plain": SamplingParams(max_new_tokens=9),
    "tempered": SamplingParams(temperature=0.7, code_temperature=(1.3, 0.9, 1.1), max_new_tokens=9),
    "truncated": SamplingParams(top_k=6, top_p=0.9, code_top_k=(4, 0, 3), code_top_p=0.8, max_new_tokens=9),
    "greedy": SamplingParams(temperature=0, max_new_tokens=9),
}


@dataclass
class World:
    checkpoint: Checkpoint
    engine: VllmEngine

    def draw(self, requests: list[GenerationRequest], sampling: SamplingParams) -> list[Generation]:
        return sorted(self.engine.continue_streams(requests, sampling), key=lambda g: g.index)


@pytest.fixture(scope="module", params=[("qwen2", False), ("llama", True)], ids=["qwen2", "llama-tied"])
def world(request: Any, tmp_path_factory: Any) -> Iterator[World]:
    checkpoint = world_checkpoint(*request.param)
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(checkpoint, folder)
    engine = VllmEngine(folder, threads=1, **TIGHT)
    yield World(checkpoint, engine)
    engine.close()


@pytest.mark.parametrize("name", SAMPLINGS)
def test_mixed_requests_equal_the_torch_reference(world: World, name: str, monkeypatch: Any) -> None:
    model, sampling = world.checkpoint.model, SAMPLINGS[name]
    scheduler = world.engine.llm.engine_core.engine_core.scheduler
    preempt, schedule = scheduler._preempt_request, scheduler.schedule
    preempted, in_parts = [], set()

    def spy_preempt(*args: Any, **kwargs: Any) -> None:
        preempted.append(1)
        preempt(*args, **kwargs)

    def spy_schedule(*args: Any, **kwargs: Any) -> Any:
        out = schedule(*args, **kwargs)
        in_parts.update(
            r.request_id for r in scheduler.running if r.num_computed_tokens < r.num_prompt_tokens
        )
        return out

    monkeypatch.setattr(scheduler, "_preempt_request", spy_preempt)
    monkeypatch.setattr(scheduler, "schedule", spy_schedule)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    requests = mixed_requests(model.config)
    results = world.draw(requests, sampling)
    assert [r.index for r in results] == list(range(64))
    assert preempted and in_parts
    assert not torch._dynamo.utils.counters  # nothing is compiled on first use
    logps, entropies = differences(model, results, sampling)
    references = by_torch(model, requests, sampling)
    same = [same_sample(a, b) for a, b in zip(results, references, strict=True)]
    print(
        f"\n{name}: {len(preempted)} preemptions, {len(in_parts)} prompts in parts, {sum(same)}/64 samples as torch's"
    )
    print(
        "  log-prob", " ".join(f"{d:.1e}" for d in logps), "entropy", " ".join(f"{d:.1e}" for d in entropies)
    )
    assert max(logps) <= 1e-4
    assert max(entropies) <= 1e-4
    assert sum(same) >= 62
    for found, wanted in zip(results, references, strict=True):
        if same_sample(found, wanted):
            torch.testing.assert_close(found.logps, wanted.logps, atol=1e-4, rtol=0)
            torch.testing.assert_close(found.entropies, wanted.entropies, atol=1e-4, rtol=0)


def test_a_sample_does_not_depend_on_its_batch(world: World) -> None:
    requests = mixed_requests(world.checkpoint.model.config, 32)
    together = world.draw(requests, SAMPLINGS["plain"])
    for index in range(0, 32, 5):
        (alone,) = world.draw([requests[index]], SAMPLINGS["plain"])
        assert same_sample(alone, together[index])


def test_some_answers_draw_by_themselves(world: World) -> None:
    requests = mixed_requests(world.checkpoint.model.config)
    results = world.draw(requests, SAMPLINGS["plain"])
    mixed = [r for r in results if bool(r.stream.actions[0, :, 0].any() and r.stream.actions[0, :, 1].any())]
    assert mixed
    assert {r.finish_reason for r in results} == {"stop", "length"}


def test_pictures_that_differ_in_residuals_alone_share_no_cache(world: World) -> None:
    config, sampling = world.checkpoint.model.config, SAMPLINGS["plain"]
    first, second = question(config, residuals=1), question(config, residuals=2)
    assert torch.equal(first.prompt.codes[..., 0], second.prompt.codes[..., 0])
    cached = []
    step = world.engine.llm.step

    def spy() -> list[Any]:
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    world.engine.llm.step = spy
    try:
        results = [world.draw([request], sampling)[0] for request in (first, second, first)]
    finally:
        del world.engine.llm.step
    assert cached[:2] == [0, 0]
    assert cached[2] > 0
    logps, _ = differences_of_text(world, results, sampling)
    assert logps <= 1e-4
    assert not torch.equal(results[0].logps, results[1].logps)


def differences_of_text(
    world: World, results: list[Generation], sampling: SamplingParams
) -> tuple[float, float]:
    worst = [0.0, 0.0]
    for result in results:
        with torch.no_grad():
            both = world.checkpoint.model.log_probs_and_entropy(result.stream, sampling)
        for k, (found, wanted) in enumerate(zip((result.logps, result.entropies), both, strict=True)):
            worst[k] = max(worst[k], float((found - wanted[0]).abs().max()))
    return worst[0], worst[1]


def test_drawings_of_one_prompt_share_no_blocks_of_their_own(world: World) -> None:
    """Preempted drawings of one prompt come back to a cache that holds the others' patches."""
    config, sampling = world.checkpoint.model.config, SAMPLINGS["plain"]
    base = mixed_requests(config)[4]
    requests = [GenerationRequest(base.prompt, seed, (6, 6)) for seed in range(32)]
    results = world.draw(requests, sampling)
    assert differences_of_text(world, results, sampling)[0] <= 1e-4
    assert len({tuple(r.stream.codes.flatten().tolist()) for r in results}) == 32


def test_vllms_own_n_gives_each_child_the_next_seed(world: World) -> None:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    from dina.rollout.vllm_wire import pack, unpack

    model, sampling, engine = world.checkpoint.model, SAMPLINGS["plain"], world.engine
    base = mixed_requests(model.config)[0]
    params = VllmSamplingParams(
        n=3,
        seed=77,
        max_tokens=engine.vocabulary.longest(base, sampling),
        logprobs=2 * engine.config.levels - 1,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        stop_token_ids=engine.vocabulary.stop_ids(base),
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=pack(base, sampling),
    )
    engine.llm.add_request("group", {"prompt_token_ids": base.prompt.text_ids[0].tolist()}, params)
    outputs = []
    while engine.llm.has_unfinished_requests():
        outputs += [o for o in engine.llm.step() if o.finished]
    children = {o.index: o for output in outputs for o in output.outputs}
    wanted = by_torch(model, [GenerationRequest(base.prompt, 77 + i, base.grid) for i in range(3)], sampling)
    for index, reference in enumerate(wanted):
        out = children[index]
        found = unpack(
            index, base, engine.vocabulary, list(out.token_ids), out.logprobs.token_ids, out.logprobs.logprobs
        )
        assert same_sample(found, reference)


def test_a_probe_scores_given_streams(world: World) -> None:
    model, sampling = world.checkpoint.model, SAMPLINGS["plain"]
    drawn = by_torch(model, mixed_requests(model.config, 24), sampling)
    streams = [result.stream for result in drawn]
    for found, wanted in zip(world.engine.probe(streams, sampling), drawn, strict=True):
        torch.testing.assert_close(found, wanted.logps, atol=1e-4, rtol=0)


def test_a_probe_scores_the_beginnings_of_streams(world: World) -> None:
    model, sampling = world.checkpoint.model, SAMPLINGS["plain"]
    drawn = by_torch(model, mixed_requests(model.config, 24), sampling)
    streams = [beginning(result.stream) for result in drawn]
    for found, stream, wanted in zip(world.engine.probe(streams, sampling), streams, drawn, strict=True):
        assert bool(stream.actions[0, -1].any())
        torch.testing.assert_close(found, wanted.logps[: stream.length], atol=1e-4, rtol=0)


def test_a_probe_finds_weights_that_did_not_arrive(world: World) -> None:
    model, engine, sampling = world.checkpoint.model, world.engine, SAMPLINGS["plain"]
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    streams = [g.stream for g in by_torch(model, mixed_requests(model.config, 8), sampling)]
    actions = [stream.actions[0] for stream in streams]

    def learners() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model.log_probs_and_entropy(stream, sampling)[0][0] for stream in streams]

    assert compare_probe(engine.probe(streams, sampling), learners(), actions).largest <= 1e-4
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        with pytest.raises(DinaError, match="weight probe failed"):
            compare_probe(engine.probe(streams, sampling), learners(), actions)
        engine.update_weights(unpack_weights(pack_weights(model.named_parameters())), 1)
        assert compare_probe(engine.probe(streams, sampling), learners(), actions).largest <= 1e-4
    finally:
        model.load_state_dict(old, strict=False)
        engine.update_weights(old.items(), 0)


def test_prompts_become_the_samples_of_the_torch_engine(world: World) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    requests = [
        Request(Prompt("draw", "a red star", grid=(2, 3)), seed=1),
        Request(Prompt("ask", "how many?", task="vqa", image=picture), seed=2),
    ]
    sampling = SAMPLINGS["plain"]
    reference = TorchEngine(world.checkpoint)
    wanted = {s.prompt.id: s for s in reference.generate(requests, sampling)}
    found = {s.prompt.id: s for s in world.engine.generate(requests, sampling)}
    assert found.keys() == wanted.keys()
    drawn, expected = found["draw"].image, wanted["draw"].image
    assert drawn is not None and expected is not None
    np.testing.assert_array_equal(drawn, expected)
    assert found["ask"].text == wanted["ask"].text


def test_weights_are_replaced_whole_or_not_at_all(world: World) -> None:
    model, engine, sampling = world.checkpoint.model, world.engine, SAMPLINGS["plain"]
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    requests = mixed_requests(model.config, 8)
    before = world.draw(requests, sampling)
    new = {name: p * 1.05 + 0.01 for name, p in old.items()}
    some = dict(list(new.items())[:-1])
    with pytest.raises(DinaError, match="1 parameters are missing"):
        engine.update_weights(some.items(), 1)
    with pytest.raises(DinaError, match="no parameter nonsense"):
        engine.update_weights([*new.items(), ("nonsense", torch.zeros(1))], 1)
    name, tensor = next(iter(new.items()))
    with pytest.raises(DinaError, match="has shape"):
        engine.update_weights([*new.items(), (name, tensor[:1])], 1)
    assert engine.version == 0
    assert all(same_sample(a, b) for a, b in zip(before, world.draw(requests, sampling), strict=True))

    reference = world_checkpoint(model.config.text_config.model_type, model.config.tie_word_embeddings).model
    reference.load_state_dict(new, strict=False)
    try:
        engine.update_weights(new.items(), 3)
        assert engine.version == 3
        results = world.draw(requests, sampling)
        assert not all(same_sample(a, b) for a, b in zip(before, results, strict=True))
        for result in results:
            with torch.no_grad():
                logps = reference.log_probs_and_entropy(result.stream, sampling)[0][0]
            torch.testing.assert_close(result.logps, logps, atol=1e-4, rtol=0)
    finally:
        engine.update_weights(old.items(), 0)
    assert all(same_sample(a, b) for a, b in zip(before, world.draw(requests, sampling), strict=True))


def test_weights_do_not_change_under_running_requests(world: World) -> None:
    requests = mixed_requests(world.checkpoint.model.config, 8)
    running = world.engine.continue_streams(requests, SAMPLINGS["plain"])
    next(running)
    with pytest.raises(DinaError, match="still draws"):
        world.engine.update_weights(world.checkpoint.model.named_parameters(), 9)
    with pytest.raises(DinaError, match="still draws"):
        world.draw(requests, SAMPLINGS["plain"])
    running.close()  # type: ignore[attr-defined]
    assert len(world.draw(requests, SAMPLINGS["plain"])) == 8


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        (SamplingParams(guidance_scale=3.0), "guidance_scale"),
        (SamplingParams(repetition_penalty=1.1), "repetition_penalty"),
    ],
)
def test_what_vllm_cannot_do_names_the_engine_that_can(
    world: World, sampling: SamplingParams, word: str
) -> None:
    with pytest.raises(DinaError, match=f"{word}.*rollout.engine=torch"):
        world.draw(mixed_requests(world.checkpoint.model.config, 1), sampling)


def test_prompts_that_do_not_fit_are_refused(world: World) -> None:
    with pytest.raises(DinaError, match="context holds 128"):
        world.engine.check_lengths([Prompt("long", "red " * 200, grid=(2, 2))], SAMPLINGS["plain"])


def test_bfloat16_differs_by_rounding_alone(tmp_path: Path) -> None:
    checkpoint, sampling = world_checkpoint(), SAMPLINGS["plain"]
    save_checkpoint(checkpoint, tmp_path)
    engine = VllmEngine(tmp_path, dtype="bfloat16", threads=1, **TIGHT)
    try:
        results = list(engine.continue_streams(mixed_requests(checkpoint.model.config), sampling))
    finally:
        engine.close()
    streams, actions = [r.stream for r in results], [r.stream.actions[0] for r in results]
    sampler = [r.logps for r in results]
    for learner in ("float32", "bfloat16"):
        actor = TorchEngine(checkpoint, dtype=learner).probe(streams, sampling)
        report = compare_probe(sampler, actor, actions, "bfloat16", Tolerance(0.2, 5.0))
        print(f"\nbfloat16 engine, {learner} learner: mean {report.mean:.3f}, largest {report.largest:.3f}")
