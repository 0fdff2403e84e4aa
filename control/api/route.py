"""One row of the table of routes: what a handler takes and gives, as pydantic models."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from control.api.context import Context


class Nothing(BaseModel):
    """No parameters, or no body."""

    model_config = ConfigDict(extra="forbid")


class Page(BaseModel):
    """Parameters of every list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=500, description="rows at most")
    cursor: str = Field(
        "", max_length=4000, pattern=r"^[A-Za-z0-9_-]*$", description="cursor of the page before this one"
    )


@dataclass(frozen=True, slots=True)
class Route:
    """`call(context, asked, body)` runs in a thread; `asked` is a `takes`: parameters of path and query.

    `body` is None where no body is read; one with defaults for everything may be left out. `errors`: statuses that it may
    answer beside 400, 401, 403 and 503.
    """

    method: str
    path: str
    summary: str
    call: Callable[[Context, Any, Any], BaseModel]
    gives: type[BaseModel]
    takes: type[BaseModel] = Nothing
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = field(default=())

    @property
    def in_path(self) -> tuple[str, ...]:
        """Names of the parameters that stand in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))
