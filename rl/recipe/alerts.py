"""The recipe's section ``alerts:``: by name of a rule, what differs from its defaults."""

from __future__ import annotations

from pydantic import Field

from dina.rl.recipe.section import Section


class AlertConfig(Section):
    """Changes to one rule of ``dina.eval.alerts``; ``null`` keeps its default."""

    limit: float | None = Field(None, description="what the values are compared with")
    steps: int | None = Field(None, ge=1, description="so many values in a row")
    least: float | None = Field(
        None,
        ge=0,
        description="smallest difference from the run's start that counts, for rules about rise or fall",
    )
    stop: bool | None = Field(None, description="true: the run ends when the rule fires")
    off: bool | None = Field(None, description="true: the rule is not looked at")
