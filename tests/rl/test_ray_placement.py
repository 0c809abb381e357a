from __future__ import annotations

import pytest

pytest.importorskip("ray")

from dina.errors import DinaError
from dina.rewards.protocol import RewardFailure, SuiteResult
from dina.rl.cluster.placement import Slot, make_plan
from dina.rl.cluster.pool import Limits, WorkerPool
from dina.rl.cluster.reactor import Reactor
from dina.rl.cluster.reward_pool import PendingGroup, RewardPool, join_results
from dina.rl.recipe.config import TrainConfig


def config(**changes: object) -> TrainConfig:
    fields = {"model": {"path": "c"}, "data": {"train": "p"}, "rewards": [{"use": "objects"}], **changes}
    return TrainConfig.model_validate(fields)


def test_a_learner_rank_and_a_rollout_worker_share_a_gpu() -> None:
    settings = {"rollout": {"workers": 3}, "reward": {"gpus": 0.25}}
    plan = make_plan(config(ray=settings, learner={"ranks": 2, "zero_stage": 2}), has_gpus=True)
    assert plan.bundles[:2] == [{"CPU": 2.0, "GPU": 1.0}] * 2
    assert plan.bundles[2:] == [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 0.5, "GPU": 0.25}]
    assert plan.learner == [Slot(0, 1.0, 0.5, 1), Slot(1, 1.0, 0.5, 1)]
    assert plan.rollout == [Slot(0, 1.0, 0.5, 1), Slot(1, 1.0, 0.5, 1), Slot(2, 1.0, 1.0, 1)]


def test_separate_roles_have_gpus_of_their_own() -> None:
    settings = {"placement": "separate", "rollout": {"workers": 2, "cpus": 2.5, "threads": 2}}
    plan = make_plan(config(ray=settings), has_gpus=True)
    assert plan.bundles == [{"CPU": 1.0, "GPU": 1.0}, *[{"CPU": 2.5, "GPU": 1.0}] * 2, {"CPU": 0.5}]
    assert plan.rollout[1] == Slot(2, 2.5, 1.0, 2)
    assert plan.total("GPU") == 3 and plan.total("CPU") == 6.5


VLLM = {"rollout": {"engine": "vllm"}}


@pytest.mark.parametrize(
    ("changes", "has_gpus", "transport"),
    [
        (VLLM, False, "object_store"),
        ({"rollout": {"engine": "torch"}}, True, "object_store"),
        (VLLM, True, "ipc"),
        (VLLM | {"ray": {"rollout": {"workers": 2}}}, True, "object_store"),  # the second has its own GPU
        (VLLM | {"ray": {"placement": "separate", "rollout": {"workers": 2}}}, True, "nccl"),
        (VLLM | {"ray": {"placement": "separate", "rollout": {"gpus": 0.5}}}, True, "object_store"),
        (VLLM | {"ray": {"learner": {"gpus": 1}, "rollout": {"gpus": 1}}}, True, "nccl"),
        (VLLM | {"rl": {"mode": "async"}}, True, "object_store"),
        (VLLM | {"ray": {"weight_transfer": "object_store"}}, True, "object_store"),
        (VLLM | {"ray": {"weight_transfer": "ipc"}}, True, "ipc"),
    ],
)
def test_weights_go_the_fastest_way_that_the_plan_has(changes: dict, has_gpus: bool, transport: str) -> None:
    settings = config(**changes)
    assert make_plan(settings, has_gpus).transport(settings) == transport


def test_a_way_of_weights_that_the_plan_has_not_is_refused() -> None:
    settings = config(**VLLM, ray={"weight_transfer": "nccl"})
    with pytest.raises(
        DinaError, match="nccl is not to be had: rollout workers share GPUs .* auto is ipc here"
    ):
        make_plan(settings, has_gpus=True).transport(settings)
    with pytest.raises(DinaError, match="do not all have a GPU"):
        make_plan(settings, has_gpus=False).transport(settings)


def test_a_reward_may_have_workers_of_its_own() -> None:
    judge = {"use": "ocr", "workers": 2, "resources": {"cpus": 1.5, "gpus": 0.25}}
    away = {"use": "image_quality", "runtime_env": {"env_vars": {"A": "1"}}}
    plan = make_plan(config(rewards=[{"use": "objects"}, judge, away]), has_gpus=False)
    assert plan.bundles[1:] == [{"CPU": 0.5}, *[{"CPU": 1.5, "GPU": 0.25}] * 2, {"CPU": 0.5}]
    assert len(plan.reward) == 1 and {name: len(slots) for name, slots in plan.own_reward.items()} == {
        "ocr": 2,
        "image_quality": 1,
    }
    alone = make_plan(config(rewards=[judge]), has_gpus=False)
    assert alone.reward == [] and len(alone.own_reward["ocr"]) == 2


def test_threads_are_those_of_the_run_unless_a_role_has_its_own() -> None:
    plan = make_plan(config(run={"threads": 4}, ray={"rollout": {"threads": 3}}), has_gpus=False)
    slots = [*plan.learner, *plan.rollout, *plan.reward]
    assert [slot.threads for slot in slots] == [4, 3, 1]


def test_without_gpus_none_is_asked_for() -> None:
    plan = make_plan(config(ray={"learner": {"cpus": 0.0}, "rollout": {"cpus": 0.0}}), has_gpus=False)
    assert plan.bundles == [{"CPU": 0.01}, {"CPU": 0.5}]
    assert make_plan(config(ray={"learner": {"gpus": 1.0}}), has_gpus=False).total("GPU") == 1


def test_a_reward_that_times_out_in_three_groups_in_a_row_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewed: list[str] = []
    monkeypatch.setattr(WorkerPool, "renew", lambda self, index, reason: renewed.append(reason))
    scorer = RewardPool(config(rewards=[{"use": "objects"}, {"use": "ocr"}]), [], Reactor(), Limits(1, 600.0))
    (pool,) = scorer.pools

    def answer(late: list[str], ocr: float | None = None) -> None:
        scores = {"objects": [1.0], "ocr": [ocr]}
        part = SuiteResult([], scores, {}, [], {}, timed_out=late)
        scorer.take(PendingGroup([], missing=1), pool, 0, part)

    for late, ocr in [
        (["ocr"], None),
        (["ocr"], None),
        ([], 0.5),
        (["ocr"], None),
        ([], None),
        (["ocr"], None),
    ]:
        answer(
            late, ocr
        )  # a group that the reward scores ends the row; one that it does not apply to does not
    assert len(renewed) == 4
    with pytest.raises(DinaError, match="'ocr' timed out in 3 batches in a row"):
        answer(["ocr"])


def test_groups_join_to_a_batch() -> None:
    first = SuiteResult(
        [1.0, None],
        {"a": [1.0, None]},
        {"a": [{"x": 1.0}, None]},
        [RewardFailure("a", 1, "broke")],
        {"a": 0.5},
        {"rewards/a/t": 1.0},
    )
    second = SuiteResult(
        [0.0, 2.0],
        {"a": [0.0, 2.0]},
        {"a": [None, None]},
        [RewardFailure("a", 0, "too")],
        {"a": 0.25},
        {"rewards/a/t": 2.0},
    )
    joined = join_results([first, second])
    assert joined.total == [1.0, None, 0.0, 2.0]
    assert [(f.sample_index, f.reason) for f in joined.failures] == [(1, "broke"), (2, "too")]
    assert joined.seconds == {"a": 0.75} and joined.logged == {"rewards/a/t": 1.5}
    assert joined.metrics()["rewards/a/mean"] == 1.0
