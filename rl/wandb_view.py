"""The dashboard's sections as a saved view of a W&B project, from the same table of metrics.

``python -m dina.rl.wandb_view ENTITY/PROJECT`` saves it once; every run of the project is then shown in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dina.errors import DinaError
from dina.eval.figures import PANELS, Panel
from dina.eval.metric_table import row, sections

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "dina"


def build_view(entity: str, project: str) -> Workspace:
    """The view, not saved yet.

    Raises:
        DinaError: the extra ``wandb`` is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as parts
        import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise DinaError(f'the view needs {error.name}: pip install "dina-rl[wandb]"') from None
    return spaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            spaces.Section(
                name=section.title,
                is_open=section.page != "speed",
                panels=[parts.LinePlot(**_plot(panel)) for panel in PANELS[section.key]],
            )
            for section in sections()
        ],
    )


def _plot(panel: Panel) -> dict[str, Any]:
    plot: dict[str, Any] = {"title": panel.title, "log_y": panel.log}
    if any(row(name).places for name in panel.metrics):
        plot["metric_regex"] = _regex(panel.metrics)
    else:
        plot["y"] = list(panel.metrics)
    return plot


def _regex(names: Sequence[str]) -> str:
    """Matches what the rows are about, in words that JavaScript understands: without names of groups."""
    patterns = [re.sub(r"\?P<\w+>", "?:", row(name).pattern.pattern) for name in names]
    return f"^({'|'.join(patterns)})$"


def main(arguments: Sequence[str]) -> None:
    """Saves the view in the project that the only argument names."""
    entity, _, project = "".join(arguments).partition("/")
    if not entity or not project:
        raise DinaError("name the project: python -m dina.rl.wandb_view ENTITY/PROJECT")
    view = build_view(entity, project)
    try:
        view.save()
    except Exception as error:
        raise DinaError(
            f"W&B does not save the view ({error}). Is WANDB_API_KEY set, or `wandb login` done?"
        ) from error
    print(f"The view is at {view.url}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DinaError as error:
        raise SystemExit(f"error: {error}") from None
