"""A process of its own that outlives a run's driver, however that ends, and ends whatever its Ray left behind.

Ray's helpers notice only after a minute that their server is gone. The watchdog needs no word from the driver: it
waits for the end of a pipe, which the kernel closes even after SIGKILL.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "DINA_RAY_FOLDER"
"""Environment variable by which processes of a Ray are told: its folder. They pass it on to their own children."""

GRACE_SECONDS = 2.0
_KILL_SECONDS = 10.0


def watch_over(folder: Path) -> Callable[[], None]:
    """Starts a watchdog over the processes that are marked with ``folder``.

    Returns:
        what makes it end them now, delete the folder, and go.
    """
    command = [sys.executable, "-m", __name__, str(os.getpid()), str(folder)]
    watchdog = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal goes to the driver's session
    )

    def finish() -> None:
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        watchdog.wait(GRACE_SECONDS + 2 * _KILL_SECONDS)

    return finish


@contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Processes that are started in here, and theirs, belong to the Ray of ``folder``."""
    os.environ[MARK] = str(folder)
    try:
        yield
    finally:
        del os.environ[MARK]


def members(folder: Path, driver: int) -> set[psutil.Process]:
    """The live processes of the Ray of ``folder``, and all below them, without the ``driver`` that started it."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.pid != driver and _belongs(process, folder):
                found |= {process, *process.children(recursive=True)}
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            continue
    return {process for process in found if _alive(process)}


def _belongs(process: psutil.Process, folder: Path) -> bool:
    """Whether a process carries the mark, or writes into the folder, as all that Ray starts do: their logs."""
    if not psutil.LINUX:
        return process.environ().get(MARK) == str(folder)
    # A process that gives itself another title overwrites its environment: psutil then stops at the first gap, and
    # of a small environment nothing is left.
    own = Path("/proc", str(process.pid))
    if f"{MARK}={folder}" in own.joinpath("environ").read_text(errors="replace").split("\0"):
        return True
    for opened in own.joinpath("fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if folder in opened.readlink().parents and _is_written(own / "fdinfo" / opened.name):
                return True
    return False


def _is_written(fdinfo: Path) -> bool:
    flags = dict(line.split(":", 1) for line in fdinfo.read_text().splitlines())["flags"]
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def clear_away(folder: Path, driver: int) -> None:
    """Lets the processes of ``folder`` end for a moment, kills those that do not, and deletes the folder."""
    known = members(folder, driver)
    psutil.wait_procs(known, timeout=GRACE_SECONDS)
    end = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < end:
        # Looked for again, because one that is about to be killed may start another.
        known = {process for process in known | members(folder, driver) if _alive(process)}
        if not known:
            break
        for process in known:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(known, timeout=0.5)
    shutil.rmtree(folder, ignore_errors=True)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _main(driver: int, folder: Path) -> None:
    # A process that the driver forked would keep the pipe open, so its parenthood counts too.
    while not select.select([sys.stdin], [], [], 1.0)[0] and os.getppid() == driver:
        pass
    clear_away(folder, driver)


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
