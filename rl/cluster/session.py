"""Ray for one run: started on this machine and put away again, or joined where it runs already."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services

from dina.errors import DinaError
from dina.rl.cluster.watchdog import marked, members, watch_over
from dina.rl.environment import usable_cpus
from dina.rl.recipe.cluster import RayConfig

log = logging.getLogger(__name__)
MIB = 2**20
_ATTEMPTS = 4
_START_SECONDS = 180
# On one machine a process that is late is not lost: all of them wait for the same processors.
_SLOW_MACHINE = {
    "agent_register_timeout_ms": 1000 * _START_SECONDS,
    "worker_register_timeout_seconds": _START_SECONDS,
    "health_check_timeout_ms": 60_000,
}


def open_session(config: RayConfig, cpus: float) -> Callable[[], None]:
    """Connects this process to Ray, and returns what ends the connection.

    A Ray started here listens on the loopback interface alone, has no dashboard, and ends with this process: a
    watchdog sees to it, and deletes its folder. It counts at least as many CPUs as the run asks for: on a small
    machine the processes share what there is.

    Args:
        cpus: what all processes of the run reserve together.

    Raises:
        DinaError: Ray does not start, or there is no cluster at ``ray.address``.
    """
    if ray.is_initialized():
        return lambda: None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as stack:
        try:
            if config.address is not None:
                stack.callback(ray.shutdown)
                ray.init(address=config.address, logging_level=logging.ERROR)
            else:
                stack.callback(_start(config, cpus))
        except Exception as error:  # Ray raises a bare Exception when one of its processes does not come up
            where = f"at ray.address {config.address}" if config.address else "on this machine"
            raise DinaError(
                f"Ray does not answer {where}: {str(error).splitlines()[0]}. Check the address (ray status), or "
                "train in one process with rl.runner=local"
            ) from error
        return stack.pop_all().close


def _start(config: RayConfig, cpus: float) -> Callable[[], None]:
    """Starts Ray on this machine; again if the machine was too busy for the few seconds that Ray gives itself."""
    for left in reversed(range(_ATTEMPTS)):
        with ExitStack() as stack:
            try:
                _start_once(config, cpus, stack)
            except Exception as error:
                if not left or "timed out" not in str(error):
                    raise
                log.warning(
                    "Ray's processes did not come up in time on this busy machine; starting them again"
                )
                continue
            return stack.pop_all().close
    raise AssertionError("the last attempt returns or raises")


def _start_once(config: RayConfig, cpus: float, stack: ExitStack) -> None:
    # Not mkdtemp's own default: Ray's sockets lie below, and their paths must be short.
    parent = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=parent))
    stack.callback(watch_over(folder))
    _stay_on_loopback()
    stack.callback(ray.shutdown)
    with marked(folder), _patience(folder):
        ray.init(
            address="local",
            num_cpus=max(usable_cpus(), math.ceil(cpus)),
            object_store_memory=config.object_store_mb * MIB,
            include_dashboard=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            _system_config=_SLOW_MACHINE,
        )


@contextmanager
def _patience(folder: Path) -> Iterator[None]:
    """In here, Ray waits for its node as long as that lives, and not for the 30 s of a constant."""
    ask = services.get_node

    def ask_patiently(*arguments: Any) -> Any:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end or not _lives(folder, "raylet"):
                    raise
                time.sleep(0.5)

    services.get_node = ask_patiently
    try:
        yield
    finally:
        services.get_node = ask


def _lives(folder: Path, name: str) -> bool:
    for process in members(folder, os.getpid()):
        with suppress(psutil.Error):  # gone meanwhile
            if process.name() == name:
                return True
    return False


def _stay_on_loopback() -> None:
    """Ray binds to the address of its node, and this switch alone makes that the loopback address."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
