"""``dina dashboard``: finds the runs, and the package that serves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dina.errors import DinaError
from dina.eval.dashboard.live import find_runs


def show(paths: Sequence[Path], host: str, port: int, ready: Callable[[str], Any]) -> None:
    """Serves a page on the runs until it is stopped.

    Args:
        paths: folders of runs, or folders that hold some.
        ready: is given the address.

    Raises:
        DinaError: a folder is not there, ``host`` is not this machine's loopback, the port is taken, or the extra
            ``dashboard`` is not installed.
    """
    for path in paths:
        if not path.is_dir():
            raise DinaError(f"there is no folder {path}; a run lies where its recipe's run.output_dir says")
    try:
        from dina.eval.dashboard.server import serve
    except ImportError as error:
        raise DinaError(f'the dashboard needs {error.name}: pip install "dina-rl[dashboard]"') from None
    serve(find_runs(paths), host, port, ready)
