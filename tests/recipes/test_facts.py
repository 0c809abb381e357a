from __future__ import annotations

import numpy as np
import pytest

from dina.recipes.scenes.concepts import COMBOS
from dina.recipes.scenes.descriptions import sample_request, whole_description
from dina.recipes.scenes.facts import Claim, FactsReward, facts_f1, read_claims
from dina.recipes.scenes.world import Obj, Scene, sample_scene
from dina.rewards.batch import RewardSample
from dina.rewards.protocol import RewardSpec
from dina.rewards.suite import RewardSuite
from dina.rollout.protocol import Prompt

SCENE = Scene(
    (
        Obj("ring", "blue", "small", 32, 52),
        Obj("star", "red", "small", 12, 12),
        Obj("circle", "orange", "large", 32, 32),
    )
)
TRUTH = "a red star at the top left, an orange circle in the middle and a blue ring at the bottom"


def test_a_scene_is_described_in_reading_order_and_read_back() -> None:
    assert whole_description(SCENE) == TRUTH
    assert read_claims(TRUTH) == [
        Claim("star", "red", "top left"),
        Claim("circle", "orange", "middle"),
        Claim("ring", "blue", "bottom"),
    ]


def test_every_description_is_read_back_whole() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        scene = sample_scene(rng, COMBOS)
        claims = read_claims(whole_description(scene))
        assert sorted((c.shape, c.color) for c in claims) == sorted(o.combo for o in scene.objects)
        assert all(claim.place for claim in claims)
        assert facts_f1(whole_description(scene), whole_description(scene)) == 1.0


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (TRUTH, 1.0),
        ("a blue ring at the bottom, a red star at the top left, an orange circle in the middle", 1.0),
        ("a red star at the top left", 2 * 3 / (3 + 9)),  # one object of three
        ("a star, a circle and a ring", 2 * 3 / (3 + 9)),  # nothing wrong, two facts of three left out
        (TRUTH.replace("red", "pink"), 2 * 8 / 18),
        (f"{TRUTH} and a red star at the top left", 2 * 9 / (12 + 9)),  # said twice
        (f"{TRUTH} and zzz qq", 2 * 9 / (10 + 9)),  # noise is a false fact
        ("", 0.0),
        ("no idea", 0.0),
    ],
)
def test_facts_are_counted(said: str, score: float) -> None:
    assert facts_f1(said, TRUTH) == pytest.approx(score)


def test_the_reward_judges_its_own_rows_alone() -> None:
    completions = [[{"role": "assistant", "content": TRUTH}]] * 3
    own = "dina.recipes.scenes.facts:FactsReward"
    assert FactsReward()(completions, [TRUTH, TRUTH, None], metric=[own, "vqa", own]) == [1.0, None, None]
    rows = [{"answer": TRUTH, "metric": own}, {"answer": TRUTH}]
    samples = [
        RewardSample(Prompt(str(i), "?", "vqa", columns=row), text=TRUTH) for i, row in enumerate(rows)
    ]
    suite = RewardSuite([RewardSpec(own, name="facts"), RewardSpec("vqa")])
    scored = suite.score(samples)
    suite.close()
    assert scored.per_reward == {"facts": [1.0, None], "vqa": [None, 1.0]}


def test_requests_ask_for_two_to_four_objects() -> None:
    rng = np.random.default_rng(0)
    counts = [len(read_claims(sample_request(rng).answer)) for _ in range(200)]
    assert set(counts) == {2, 3, 4}
