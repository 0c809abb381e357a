from __future__ import annotations

import re

import pytest

from dina.errors import DinaError
from dina.eval.metric_table import sections
from dina.rl.wandb_view import build_view, main

pytest.importorskip("wandb_workspaces")


def test_the_view_has_the_dashboards_sections_and_their_metrics() -> None:
    view = build_view("someone", "dina")
    assert [section.name for section in view.sections] == [section.title for section in sections()]
    plots = {plot.title: plot for section in view.sections for plot in section.panels}
    assert plots["Gradient norm"].y == ["grad_norm"] and plots["Gradient norm"].log_y
    levels = re.compile(plots["Entropy by level"].metric_regex)
    assert levels.match("level_11/entropy") and levels.match("text/entropy")
    assert not levels.match("level_1/kl") and not levels.match("my/text/entropy")
    # W&B runs it as JavaScript, which has other named groups.
    assert "?P" not in levels.pattern


def test_the_project_has_to_be_named() -> None:
    with pytest.raises(DinaError, match="ENTITY/PROJECT"):
        main(["dina"])
