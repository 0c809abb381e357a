from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from dina.rl.bench.soak import Look, look, verdict

HELPER = """
import mmap, sys
shared = mmap.mmap(-1, 2**26)
shared.write(bytes(2**26))
files = [open('/dev/null') for _ in range(20)]
print(flush=True)
sys.stdin.read()
"""


def looks(memory: float = 0.0, files: float = 0.0, processes: float = 0.0, shared: float = 0.0) -> list[Look]:
    """200 steps that grow by so much in all, after a warm-up that always does, with noise and one outlier."""
    noise = random.Random(0)
    found = []
    for step in range(1, 201):
        level = 1500 + 3 * min(step, 40) + noise.uniform(-8, 8) + (400 if step == 120 else 0)
        at = step / 200
        found.append(
            Look(
                step,
                step,
                level + memory * at,
                round(300 + files * at),
                round(14 + processes * at),
                100 + shared * at,
            )
        )
    return found


@pytest.mark.parametrize(
    ("growth", "named"),
    [
        ({}, []),
        ({"memory": 120}, ["memory_mib"]),
        ({"files": 60}, ["files"]),
        ({"shared": 20}, ["shared_mib"]),
        ({"processes": 4}, ["processes"]),
    ],
)
def test_growth_is_told_from_noise_and_warm_up(growth: dict[str, float], named: list[str]) -> None:
    assert verdict(looks(**growth), 200)["grows"] == named


def test_too_few_looks_are_no_clean_bill() -> None:
    assert verdict(looks()[:52], 200)["grows"] == ["memory_mib", "shared_mib", "files", "processes"]


def test_a_look_counts_all_below() -> None:
    before = look(os.getpid(), 1, 0.0)
    helper = subprocess.Popen([sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert helper.stdout is not None and helper.stdin is not None
    helper.stdout.readline()
    try:
        after = look(os.getpid(), 1, 0.0)
    finally:
        helper.stdin.close()
        helper.wait()
    assert after.processes == before.processes + 1
    assert after.files >= before.files + 20
    assert after.memory_mib > before.memory_mib
    assert after.shared_mib >= 64
