"""``dina dashboard`` from the command line; what it serves is tested in tests/eval/dashboard."""

from __future__ import annotations

import builtins
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.rl.test_cli import run


def test_it_says_where_it_is_and_answers_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    command = [sys.executable, "-m", "dina.rl.cli", "dashboard", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if "http://" in line)
            with urlopen(f"{said[said.index('http') :].split()[0]}api/runs") as answer:
                assert json.load(answer)[0]["step"] == 1
        finally:
            process.terminate()


def test_what_it_cannot_do_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, said = run("dashboard", tmp_path / "nothing")
    assert code == 2 and "there is no folder" in said
    code, _, said = run("dashboard", tmp_path, "--host", "0.0.0.0")
    assert code == 2 and "127.0.0.1 or ::1 only" in said
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, _, said = run("dashboard", tmp_path, "--port", other.getsockname()[1])
    assert code == 2 and "--port 0 takes a free one" in said
    original: Callable[..., Any] = builtins.__import__

    def without_uvicorn(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "uvicorn":
            raise ImportError("no uvicorn", name=name)
        return original(name, *arguments, **more)

    monkeypatch.delitem(sys.modules, "dina.eval.dashboard.server", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    code, _, said = run("dashboard", tmp_path)
    assert code == 2 and 'pip install "dina-rl[dashboard]"' in said
