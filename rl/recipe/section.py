"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ModuleAttr = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
"""``package.module:attr``."""

Grid = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
"""[rows, columns] of a picture in visual tokens."""


class Section(BaseModel):
    """Part of a recipe: unknown keys and wrong types are errors, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
