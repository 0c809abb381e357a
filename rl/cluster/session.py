"""Ray for one run: started on this machine and put away again, or joined where it runs already."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import ray
from ray._private import ray_constants

from dina.errors import DinaError
from dina.rl.cluster_config import RayConfig
from dina.rl.environment import usable_cpus

MIB = 2**20


def open_session(config: RayConfig, cpus: float) -> Callable[[], None]:
    """Connects this process to Ray, and returns what ends the connection.

    A Ray started here listens on the loopback interface alone, has no dashboard, and dies with this process. It
    counts at least as many CPUs as the run asks for: on a small machine the processes share what there is.

    Args:
        cpus: what all processes of the run reserve together.

    Raises:
        DinaError: Ray does not start, or there is no cluster at ``ray.address``.
    """
    if ray.is_initialized():
        return lambda: None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if config.address is not None:
            ray.init(address=config.address, logging_level=logging.ERROR)
        else:
            _stay_on_loopback()
            ray.init(
                address="local",
                num_cpus=max(usable_cpus(), math.ceil(cpus)),
                object_store_memory=config.object_store_mb * MIB,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises a bare Exception when one of its processes does not come up
        ray.shutdown()
        where = f"at ray.address {config.address}" if config.address else "on this machine"
        raise DinaError(
            f"Ray does not answer {where}: {str(error).splitlines()[0]}. Check the address (ray status), or train "
            "in one process with rl.runner=local"
        ) from error
    return ray.shutdown


def _stay_on_loopback() -> None:
    """Ray binds to the address of its node, and this switch alone makes that the loopback address."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
