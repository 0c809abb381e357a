"""What becomes of freed memory, in a process of its own: the allocator's settings cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A hundred pieces of 1 MiB, of which the last stays: what lies below it is returned by trimming alone.
PROGRAM = """
import time
import psutil
from dina.rl import memory

memory.TRIM_SECONDS = 2.0
memory.keep_freed_memory()
own = psutil.Process()
start = own.memory_info().rss
pieces = [b"x" * 2**20 for _ in range(100)]
full = own.memory_info().rss - start
del pieces[:99]
kept = own.memory_info().rss - start
time.sleep(3.0)
print(full >> 20, kept >> 20, (own.memory_info().rss - start) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_kept_for_the_next_step_and_returned_in_time() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    full, kept, later = map(int, said.split())
    assert full >= 95 and kept >= 95 and later < 20
