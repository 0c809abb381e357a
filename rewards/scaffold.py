"""Writes a new reward package that works: its code, its entry point and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from dina.errors import DinaError

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.1.0"
dependencies = ["numpy"]

[project.entry-points."dina.rewards"]
{name} = "{module}:{name}"

[tool.setuptools]
py-modules = ["{module}"]
"""

_MODULE = '''\
"""The reward `{name}`."""

import numpy as np


def {name}(generated_images, gain=1.0, log_extra=None, **columns):
    """1 for a white picture, 0 for a black one."""
    pixels = [np.asarray(image, dtype=float) / 255 for image in generated_images]
    if log_extra:
        log_extra("contrast", [float(p.std()) for p in pixels])
    return [min(gain * float(p.mean()), 1.0) for p in pixels]
'''

_TEST = """\
from {module} import {name}
from PIL import Image


def test_white_is_better_than_black():
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    assert {name}(generated_images=[white, black]) == [1.0, 0.0]


def test_as_a_recipe_uses_it():
    import numpy as np
    from dina.rewards.batch import RewardSample
    from dina.rewards.protocol import RewardSpec
    from dina.rewards.suite import RewardSuite
    from dina.rollout.protocol import Prompt

    suite = RewardSuite([RewardSpec("{module}:{name}", kwargs={{"gain": 0.5}})])
    picture = np.full((8, 8, 3), 255, np.uint8)
    result = suite.score([RewardSample(Prompt("p0", "snow"), picture)])
    suite.close()
    assert result.total == [0.5] and result.failures == []
"""


def new_reward(name: str, folder: Path) -> list[Path]:
    """Writes the package of a reward called ``name`` to ``folder`` and returns its files.

    Raises:
        DinaError: the name is no Python name, or one of the files is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise DinaError(
            f"{name!r} cannot name a function; use small letters, digits and _, such as sharp_edges"
        )
    module = f"{name}_reward"
    words = {"name": name, "module": module, "distribution": f"dina-reward-{name.replace('_', '-')}"}
    texts = {
        folder / "pyproject.toml": _PYPROJECT,
        folder / f"{module}.py": _MODULE,
        folder / f"test_{module}.py": _TEST,
    }
    for path in texts:
        if path.exists():
            raise DinaError(f"{path} is there already; name another folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text.format(**words), encoding="utf-8")
    return list(texts)
