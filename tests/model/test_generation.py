from __future__ import annotations

import pytest
import torch

from dina.model.generation import Generation, GenerationRequest, generate
from dina.model.modeling import DinaForConditionalGeneration
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from tests.model.tiny import drawing_prompt, picture_prompt, text_prompt, tiny_model


def mixed_requests(model: DinaForConditionalGeneration, count: int = 30) -> list[GenerationRequest]:
    """Drawings of several grids, plain text, and questions about pictures, in turn."""
    requests = []
    for i in range(count):
        if i % 3 == 0:
            prompt, grid = drawing_prompt(model.config, 3 + i % 5, seed=i), (2 + i % 3, 1 + i % 4)
        elif i % 3 == 1:
            prompt, grid = text_prompt(4 + i % 7, seed=i), None
        else:
            prompt, grid = picture_prompt(model.config, (2, 3), 3 + i % 4, seed=i), None
        requests.append(GenerationRequest(prompt, seed=1000 + i, grid=grid))
    return requests


def by_index(results: list[Generation]) -> list[Generation]:
    return sorted(results, key=lambda r: r.index)


def assert_same(a: Generation, b: Generation) -> None:
    assert torch.equal(a.stream.text_ids, b.stream.text_ids)
    assert torch.equal(a.stream.codes, b.stream.codes)
    torch.testing.assert_close(a.logps, b.logps, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.entropies, b.entropies, atol=1e-4, rtol=0)
    assert a.finish_reason == b.finish_reason


SAMPLINGS = {
    "plain": SamplingParams(max_new_tokens=9),
    "tempered": SamplingParams(temperature=0.7, code_temperature=(1.3, 0.9, 1.1), max_new_tokens=9),
    "truncated": SamplingParams(top_k=6, top_p=0.9, code_top_k=(4, 0, 3), code_top_p=0.8, max_new_tokens=9),
    "guided": SamplingParams(guidance_scale=2.5, max_new_tokens=9),
    "greedy": SamplingParams(temperature=0, max_new_tokens=9),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize(("backbone", "tied"), [("qwen2", False), ("llama", True)])
def test_reported_log_probs_are_the_teacher_forced_ones(name: str, backbone: str, tied: bool) -> None:
    model, sampling = tiny_model(backbone, tied), SAMPLINGS[name]
    results = by_index(list(generate(model, mixed_requests(model), sampling)))
    assert [r.index for r in results] == list(range(30))
    stream = TokenStream.collate([r.stream for r in results], pad_id=3)
    with torch.no_grad():
        logps, entropies = model.log_probs_and_entropy(stream, sampling)
    for channel in range(stream.actions.shape[2]):
        assert stream.actions[..., channel].any()
    for row, result in enumerate(results):
        length = result.stream.length
        torch.testing.assert_close(logps[row, :length], result.logps, atol=1e-4, rtol=0)
        torch.testing.assert_close(entropies[row, :length], result.entropies, atol=1e-4, rtol=0)
        assert (logps[row, length:] == 0).all()


@pytest.mark.parametrize("name", ["plain", "guided"])
def test_a_mixed_batch_equals_each_alone(name: str) -> None:
    model, sampling = tiny_model(), SAMPLINGS[name]
    requests = mixed_requests(model)
    for result in generate(model, requests, sampling):
        (alone,) = generate(model, [requests[result.index]], sampling)
        assert_same(result, alone)


def test_drawings_follow_the_layout() -> None:
    model = tiny_model()
    request = GenerationRequest(drawing_prompt(model.config, 4), seed=3, grid=(2, 3))
    (result,) = generate(model, [request], SamplingParams())
    config, start = model.config, request.prompt.length
    pad, newline = config.image_pad_token_id, config.image_newline_token_id
    drawn = result.stream.text_ids[0, start:].tolist()
    assert drawn == [pad, pad, pad, newline, pad, pad, pad, config.image_end_token_id]
    is_pad = result.stream.text_ids[0] == pad
    assert torch.equal(result.stream.actions[0, :, 1:].all(1), is_pad)
    assert not result.stream.actions[0, :, 0].any()
    assert (result.stream.codes[0][is_pad] >= 0).all()
    assert (result.stream.codes[0][~is_pad] == -1).all()
    assert result.finish_reason == "stop"


def test_forced_tokens_are_never_sampled_as_text() -> None:
    model = tiny_model()
    requests = [GenerationRequest(text_prompt(3, seed=i), seed=i) for i in range(64)]
    forced = set(model.config.forced_token_ids)
    for result in generate(model, requests, SamplingParams(temperature=5.0, max_new_tokens=12)):
        assert not forced & set(result.stream.text_ids[0].tolist())


def test_seeds_change_samples_and_repeat_them() -> None:
    model = tiny_model()
    prompt = drawing_prompt(model.config, 4)
    requests = [GenerationRequest(prompt, seed=s, grid=(3, 3)) for s in (1, 2, 1)]
    first, second, again = by_index(list(generate(model, requests, SamplingParams())))
    assert_same(first, again)
    assert not torch.equal(first.stream.codes, second.stream.codes)


def test_a_long_answer_is_cut_and_says_so() -> None:
    model = tiny_model()
    results = list(generate(model, mixed_requests(model), SamplingParams(temperature=3, max_new_tokens=2)))
    cut = [r for r in results if r.finish_reason == "length"]
    assert cut
    assert all(int(r.stream.actions[..., 0].sum()) == 2 for r in cut)


def test_guidance_of_one_is_no_guidance() -> None:
    model = tiny_model()
    requests = mixed_requests(model, 6)
    plain = by_index(list(generate(model, requests, SamplingParams(max_new_tokens=5))))
    one = by_index(list(generate(model, requests, SamplingParams(max_new_tokens=5, guidance_scale=1.0))))
    for a, b in zip(plain, one, strict=True):
        assert_same(a, b)


def test_a_drawing_needs_a_grid() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="needs a grid"):
        list(generate(model, [GenerationRequest(drawing_prompt(model.config, 2), 0)], SamplingParams()))
