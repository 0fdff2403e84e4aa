"""The filter: which repos and collections are mirrored. Matching: `steps/gate/filters.py`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.patterns import DID, NSID, PATTERN

MAX_DIDS = 200_000

Pattern = Annotated[str, StringConstraints(pattern=PATTERN, max_length=317)]
Did = Annotated[str, StringConstraints(pattern=DID, max_length=2048)]
Boundary = Literal["all", "dids", "collection"]


class FilterSpec(BaseModel):
    """Which collections, of which repos."""

    model_config = ConfigDict(extra="forbid")

    collections: list[Pattern] = Field(
        default=["*"],
        min_length=1,
        max_length=1000,
        description="an NSID, NSID.* for everything below it, or * for everything",
    )
    boundary: Boundary = Field(
        default="all", description="all repos, those of a list of DIDs, or those with records of a signal collection"
    )
    dids: list[Did] = Field(default=[], max_length=MAX_DIDS, description="boundary dids: the DIDs")
    signal: Annotated[str, StringConstraints(pattern=NSID, max_length=317)] | None = Field(
        default=None, description="boundary collection: the NSID; `collections` must include it"
    )

    @model_validator(mode="after")
    def _fits(self) -> "FilterSpec":
        if (self.boundary == "collection") != (self.signal is not None):
            raise ValueError("boundary collection, and no other, takes a signal")
        if (self.boundary == "dids") != bool(self.dids):
            raise ValueError("boundary dids, and no other, takes dids")
        return self


class FilterState(BaseModel):
    """The current filter."""

    version: int
    collections: list[str]
    boundary: Boundary
    signal: str | None
    dids: int = Field(description="number of DIDs of boundary dids")
    outside: int = Field(description="known repos outside the boundary, counted to 100,000")
    set_at: datetime
    walking: bool = Field(description="repos are still being excluded, or scheduled because records are missing")
    pruning: bool = Field(description="rows outside the filter are being removed")
    clean: bool = Field(description="no rows outside the filter are left")
