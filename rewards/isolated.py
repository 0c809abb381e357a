"""A reward in a process of its own: it can be killed when it hangs, and its memory can be limited.

The two ends are a process and the child that it started, over a socket pair that nothing else can reach.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from dina.errors import DinaError
from dina.rewards.protocol import Reward, RewardSpec, Score
from dina.rewards.worker import ToldError, describe, read_entry

SETUP_SECONDS = 600.0
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dina.rewards.isolated import serve_parent; serve_parent(int(sys.argv[2]))"
)
_CALLBACKS = ("log_extra", "log_metric")


class IsolatedReward:
    """Starts the process, hands it the arguments of each call, and starts it anew after its death.

    Raises:
        DinaError: the reward cannot be set up there, or not within ten minutes.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._start()

    def __call__(self, **arguments: Any) -> Any:
        """What the reward answers; its exceptions come back as ``ToldError``."""
        callbacks = {name: arguments.pop(name, None) for name in _CALLBACKS}
        if self._process.poll() is not None:
            self._start()
        process, connection = self._process, self._connection
        try:
            connection.send(arguments)
            kind, *answer = connection.recv()
        except (EOFError, OSError):
            raise ToldError(f"its process {_ending(process)}; the next call starts another") from None
        if kind == "error":
            raise ToldError(answer[0])
        value, columns, metrics = answer
        for name, reports in zip(_CALLBACKS, (columns, metrics), strict=True):
            for report in reports:
                if (callback := callbacks[name]) is not None:
                    callback(*report)
        return value

    def kill(self) -> None:
        """Ends the process at once, in the middle of whatever it does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        try:
            self._connection.send(None)
            self._process.wait(5.0)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        program = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(theirs.fileno())]
        self._process = subprocess.Popen(program, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        label = self.spec.label
        try:
            self._connection.send(self.spec)
            if not self._connection.poll(SETUP_SECONDS):
                self.kill()
                raise DinaError(f"reward {label!r} was not set up within {SETUP_SECONDS:g} s")
            kind, *answer = self._connection.recv()
        except (EOFError, OSError):
            raise DinaError(
                f"reward {label!r}: its process {_ending(self._process)} while setting up"
            ) from None
        if kind == "error":
            self._process.wait()
            raise DinaError(answer[0])
        self.__signature__, self.requires, self.batch_size = answer


def serve_parent(descriptor: int) -> None:
    """The child: sets the reward up and answers calls until the parent says stop or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C lets the run finish its step, rewards included
    connection = Connection(descriptor)
    try:
        spec: RewardSpec = connection.recv()
        if spec.memory_gib is not None:
            limit = int(spec.memory_gib * 2**30)
            # The writable memory of the process. Unlike its address space, it is small under CUDA.
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        reward = _set_up(spec, connection)
        if reward is None:
            return
        with asyncio.Runner() as runner:
            while (arguments := connection.recv()) is not None:
                connection.send(_answer(reward, arguments, runner))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _set_up(spec: RewardSpec, connection: Connection) -> Reward | None:
    from dina.rewards.registry import build_reward

    try:
        reward = build_reward(replace(spec, isolate=False, memory_gib=None))
    except DinaError as error:
        connection.send(("error", str(error)))
        return None
    except MemoryError:
        text = f"reward {spec.label!r} cannot be set up in memory_gib={spec.memory_gib:g}"
        connection.send(("error", text))
        return None
    size = getattr(reward, "batch_size", None)
    connection.send(("ready", _signature(reward), tuple(getattr(reward, "requires", ())), size))
    return reward


def _answer(reward: Reward, arguments: dict[str, Any], runner: asyncio.Runner) -> tuple[Any, ...]:
    columns: list[tuple[str, list[Any]]] = []
    metrics: list[tuple[str, float]] = []
    names = inspect.signature(reward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in names.values())
    for name, report in zip(_CALLBACKS, (columns, metrics), strict=True):
        if open_ended or name in names:
            arguments[name] = lambda key, value, to=report: to.append((key, value))
    try:
        value = reward(**arguments)
        if inspect.isawaitable(value):
            value = runner.run(_awaited(value))
        return ("answer", _plain(value), columns, metrics)
    except BaseException as error:  # sys.exit() in a reward must not end the process
        return ("error", describe(error))


async def _awaited(value: Any) -> Any:
    return await value


def _plain(value: Any) -> Any:
    """Entries as what any process can read: tensors of another process would need its memory."""
    if not isinstance(value, Sequence) and not hasattr(value, "__iter__"):
        return value
    entries: list[Score | ToldError] = []
    for entry in value:
        try:
            score, parts = read_entry(entry)
            entries.append(Score(score, parts=parts))
        except ValueError as error:
            entries.append(ToldError(str(error)))
    return entries


def _signature(reward: Reward) -> inspect.Signature:
    """The parameters without annotations and default values, which may not survive the journey."""
    return inspect.Signature(
        [
            inspect.Parameter(p.name, p.kind, default=p.empty if p.default is p.empty else None)
            for p in inspect.signature(reward).parameters.values()
        ]
    )


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
