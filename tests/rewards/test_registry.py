from __future__ import annotations

import importlib

import pytest

from dina.errors import DinaError
from dina.rewards import registry
from dina.rewards.protocol import RewardSpec
from dina.rewards.registry import available_rewards, build_reward, check_reward, load_object
from dina.rewards.suite import RewardSuite

HERE = __name__


def scaled(prompts, scale: float = 1.0):
    return [scale] * len(prompts)


def open_ended(prompts, scale: float = 1.0, **columns):
    return [scale] * len(prompts)


def punishing(limit: int):
    """A factory in the manner of TRL's get_soft_overlong_punishment."""
    return lambda completion_ids, **kwargs: [-1.0 if len(ids) > limit else 0.0 for ids in completion_ids]


class Fussy:
    def __init__(self, path: str):
        raise FileNotFoundError(path)

    def __call__(self, prompts):
        return []


class NoReward:
    pass


def test_kwargs_are_bound_to_functions_given_to_classes_and_to_factories():
    assert build_reward(RewardSpec(f"{HERE}:scaled", kwargs={"scale": 3.0}))(prompts=["a"]) == [3.0]
    strict = build_reward(RewardSpec("objects", kwargs={"detector": f"{HERE}:NoReward", "mode": "strict"}))
    assert strict.mode == "strict" and isinstance(strict.detector, NoReward)
    reward = build_reward(RewardSpec(f"{HERE}:punishing", kwargs={"limit": 2}))
    assert reward(completion_ids=[[1, 2, 3], [1]]) == [-1.0, 0.0]


@pytest.mark.parametrize(
    "spec, words",
    [
        (RewardSpec("object"), "no reward 'object': did you mean 'objects'"),
        (RewardSpec("zzz"), "known: "),
        (RewardSpec("trl.rewards.think_format_reward"), "did you mean trl.rewards:think_format_reward"),
        (RewardSpec("no_such_package:thing"), "module 'no_such_package' cannot be imported"),
        (RewardSpec(f"{HERE}:scale"), "has no 'scale'; did you mean 'scaled'"),
        (RewardSpec("objects", kwargs={"mod": "strict"}), "'objects' takes no argument 'mod'; did you mean 'mode'"),
        (RewardSpec(f"{HERE}:scaled", kwargs={"scael": 1}), "no argument 'scael'; did you mean 'scale'"),
        (RewardSpec(f"{HERE}:Fussy", kwargs={"path": "w.bin"}), "not be set up: FileNotFoundError: w.bin"),
        (RewardSpec(f"{HERE}:Fussy"), "could not be set up: TypeError"),
        (RewardSpec(f"{HERE}:NoReward"), "gives a NoReward, which is not callable"),
        (RewardSpec("objects", kwargs={"detector": f"{HERE}:Nothing"}), f"{HERE} has no 'Nothing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error_with_the_nearest_word(spec: RewardSpec, words: str):
    with pytest.raises(DinaError) as error:
        build_reward(spec)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("use", "kwargs", "words"),
    [
        ("ocr", {"engin": "easyocr"}, "'ocr' takes no argument 'engin'; did you mean 'engine'"),
        (f"{HERE}:scaled", {"scael": 1}, "no argument 'scael'; did you mean 'scale'"),
        (f"{HERE}:open_ended", {"scael": 1}, "did you mean 'scale'"),
        ("remote", {}, "'remote' needs the argument 'servers'"),
        (f"{HERE}:scale", {}, "did you mean 'scaled'"),
    ],
)
def test_a_reward_can_be_checked_without_setting_it_up(use: str, kwargs: dict, words: str):
    with pytest.raises(DinaError) as error:
        check_reward(RewardSpec(use, kwargs=kwargs))
    assert words in str(error.value)


def test_what_passes_the_check_is_not_set_up():
    check_reward(RewardSpec("self_judge", kwargs={"model": "nowhere"}))
    check_reward(RewardSpec(f"{HERE}:punishing", kwargs={"limit": 2}))
    check_reward(RewardSpec(f"{HERE}:open_ended", kwargs={"a_word_of_its_own": 2}))


def test_import_errors_of_a_plugin_are_shown(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DinaError, match="No module named 'a_package_that_is_missing'"):
        load_object("broken_plugin:reward")


def test_installed_package_adds_a_reward_by_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "bright_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dina.rewards]\nbright = bright_rewards:bright\n")
    (tmp_path / "bright_rewards.py").write_text(
        "def bright(prompts, **kwargs):\n    return [0.75] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert available_rewards()["bright"] == "bright_rewards:bright"
    assert build_reward(RewardSpec("bright"))(prompts=["a", "b"]) == [0.75, 0.75]
    with pytest.raises(DinaError, match="did you mean 'bright'"):
        build_reward(RewardSpec("brigth"))


def test_builtin_names_resolve():
    for path in registry.BUILTIN.values():
        assert callable(load_object(path))


def test_two_rewards_of_one_name_are_refused():
    spec = RewardSpec(f"{HERE}:scaled")
    with pytest.raises(DinaError, match="two rewards are called 'scaled'"):
        RewardSuite([spec, spec])
