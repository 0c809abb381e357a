"""How the process's allocator treats freed memory."""

from __future__ import annotations

import ctypes
import platform
import threading
import time

TRIM_SECONDS = 120.0


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for a while, so that the tensors of the next step find it mapped.

    On a CPU every large tensor is otherwise mapped and zeroed anew: some 240 000 page faults in an update of the
    small model. Steps differ in size, so that what is kept falls to pieces and grows; a thread therefore returns all
    of it every ``TRIM_SECONDS``, which costs one step those page faults. Other systems are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(mmap_threshold, 32 << 20)
    libc.mallopt(trim_threshold, 2**31 - 1)

    def trim() -> None:
        while True:
            time.sleep(TRIM_SECONDS)
            libc.malloc_trim(0)

    threading.Thread(target=trim, name="malloc-trim", daemon=True).start()
