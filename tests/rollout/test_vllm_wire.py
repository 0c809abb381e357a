from __future__ import annotations

import json
from itertools import product

import torch

from dina.model.generation import GenerationRequest
from dina.model.sampling import SamplingParams
from dina.model.stream import TokenStream
from dina.rollout.vllm_wire import KEY, RowState, Vocabulary, cache_salt, pack, unpack
from tests.model.tiny import CODEBOOKS, drawing_prompt, picture_prompt, text_prompt, tiny_config, tiny_model
from tests.rollout.world import by_torch, same_sample

CONFIG = tiny_config()
VOCABULARY = Vocabulary.of(CONFIG)


def state_of(request: GenerationRequest, sampling: SamplingParams) -> RowState:
    ids = request.prompt.text_ids[0].tolist()
    return RowState(VOCABULARY, ids, request.seed, pack(request, sampling)[KEY], SamplingParams())


def test_every_code_vector_has_an_id_of_its_own_outside_the_vocabulary() -> None:
    codes = torch.tensor(list(product(*map(range, CODEBOOKS))))
    ids = VOCABULARY.code_ids(codes)
    assert len(ids.unique()) == len(codes)
    assert int(ids.min()) >= CONFIG.text_config.vocab_size  # type: ignore[union-attr]


def test_ids_of_large_codebooks_fit_31_bits_and_differ() -> None:
    wide = Vocabulary(VOCABULARY.layout, 8, (16384,) * 8, 300_000, 2)
    codes = torch.randint(0, 16384, (20_000, 8), generator=torch.Generator().manual_seed(0))
    last = codes.clone()
    last[:, 7] = (last[:, 7] + 1) % 16384
    ids, others = wide.code_ids(codes), wide.code_ids(last)
    assert int(ids.min()) >= 300_000
    assert int(ids.max()) < 2**31
    assert not (ids == others).any()


def test_a_row_follows_the_layout() -> None:
    state = state_of(GenerationRequest(drawing_prompt(CONFIG, 3), 0, (2, 2)), SamplingParams())
    kinds = []
    for position in range(8, 14):
        kinds.append(state.kind)
        if state.kind == "patch":
            state.add_patch(position, torch.zeros(3, dtype=torch.int32).numpy())
        else:
            state.add_layout()
    assert kinds == ["patch", "patch", "layout", "patch", "patch", "layout"]
    assert not state.drawing


def test_an_answer_may_start_a_picture_and_is_cut_after_it() -> None:
    state = state_of(GenerationRequest(text_prompt(3), 0, (1, 1)), SamplingParams(max_new_tokens=2))
    state.add_text(7)
    state.add_text(VOCABULARY.layout.start)
    assert state.kind == "patch"
    state.add_patch(5, torch.zeros(3, dtype=torch.int32).numpy())
    assert state.kind == "layout"
    state.add_layout()
    assert state.kind == "cut"


def test_codes_of_prompts_arrive_at_their_positions() -> None:
    request = GenerationRequest(picture_prompt(CONFIG, (2, 3), 4), 0)
    state = state_of(request, SamplingParams())
    assert torch.equal(torch.from_numpy(state.codes[: request.prompt.length]).long(), request.prompt.codes[0])
    assert (state.codes[request.prompt.length :] == -1).all()


def test_sampling_survives_a_transport_that_knows_no_tuples() -> None:
    request, sampling = GenerationRequest(text_prompt(3), 0), SamplingParams(code_temperature=(1.0, 0.5, 2.0))
    fields = json.loads(json.dumps(pack(request, sampling)[KEY]))
    state = RowState(VOCABULARY, request.prompt.text_ids[0].tolist(), 0, fields, SamplingParams())
    assert state.sampling == sampling and hash(state.sampling) == hash(sampling)


def test_salt_depends_on_all_levels_and_text_needs_none() -> None:
    first, second = (picture_prompt(CONFIG, (2, 3), 4, seed=1) for _ in range(2))
    assert cache_salt(first) == cache_salt(second)
    second.codes[0, 2, -1] = (second.codes[0, 2, -1] + 1) % CODEBOOKS[-1]
    assert cache_salt(first) != cache_salt(second)
    assert cache_salt(text_prompt(4)) is None


def test_what_is_packed_comes_back() -> None:
    """A generation of the torch engine, written down as vLLM's output would have it, is read back."""
    sampling = SamplingParams(max_new_tokens=4)
    requests = [
        GenerationRequest(drawing_prompt(CONFIG, 3), 1, (2, 2)),
        GenerationRequest(text_prompt(3), 2),
        GenerationRequest(picture_prompt(CONFIG, (2, 2), 3), 3),
    ]
    for result, request in zip(by_torch(tiny_model(), requests, sampling), requests, strict=True):
        ids, columns, values = [], [], []
        for t in range(request.prompt.length, result.stream.length):
            patch = bool(result.stream.actions[0, t, 1])
            token = result.stream.text_ids[0, t, None]
            codes = result.stream.codes[0, t]
            ids.append(int(VOCABULARY.code_ids(codes[None])[0]) if patch else int(token))
            columns += (codes if patch else token.repeat(3)).tolist() + [0] * 3
            for rows in (result.logps[t], result.entropies[t]):
                values += (rows[1:] if patch else rows[:1].repeat(3)).tolist()
        found = unpack(result.index, request, VOCABULARY, ids, columns, values)
        assert same_sample(found, result)
        assert torch.equal(found.logps, result.logps)
        assert torch.equal(found.entropies, result.entropies)


def test_a_cut_answer_loses_the_token_that_ended_it() -> None:
    request = GenerationRequest(text_prompt(3), 0, (1, 1))
    found = unpack(0, request, VOCABULARY, [7, 8, VOCABULARY.cut], [0] * 18, [0.0] * 18)
    assert found.stream.text_ids[0].tolist() == [*request.prompt.text_ids[0].tolist(), 7, 8]
    assert found.finish_reason == "length"
    assert isinstance(found.stream, TokenStream)
