"""What the program says beside its results."""

from __future__ import annotations

from rich.console import Console


def stderr() -> Console:
    return Console(stderr=True)


def say(text: str, style: str | None = None) -> None:
    stderr().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
