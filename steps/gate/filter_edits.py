"""Changes of single entries of the filter: `FilterEdit`, and `edited(spec, edit) -> FilterSpec`. Pure.

A collection that a pattern of the filter covers is not added, and a pattern is removed only as it is written there. DIDs are those of
boundary `dids`. An entry that is there, or not there, already is no error.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import OperatorError
from schemas.filter_spec import MAX_DIDS, Did, FilterSpec, Pattern
from schemas.patterns import mistake
from steps.gate.filters import covers


class FilterEntries(BaseModel):
    """Collections and DIDs that a request adds to the filter, or removes from it."""

    model_config = ConfigDict(extra="forbid")

    collections: list[Pattern] = Field(default=[], max_length=1000, description="an NSID, NSID.* or *")
    dids: list[Did] = Field(default=[], max_length=MAX_DIDS, description="only with boundary dids")

    @model_validator(mode="after")
    def _names_something(self) -> "FilterEntries":
        if not self.collections and not self.dids:
            raise ValueError("give collections or dids")
        return self


@dataclass(frozen=True, slots=True)
class FilterEdit:
    """Entries to add, or to remove."""

    verb: Literal["add", "remove"]
    entries: FilterEntries

    def __call__(self, spec: FilterSpec) -> FilterSpec:
        """The filter after the edit. Raises OperatorError if it cannot be expressed."""
        if self.entries.dids and spec.boundary != "dids":
            raise OperatorError(
                f"the filter has no list of DIDs: it mirrors {_repos(spec)}; `sluice filters set --did DID` starts a list"
            )
        added = self.verb == "add"
        collections = (_with if added else _without)(spec.collections, self.entries.collections)
        dids = list(dict.fromkeys([*spec.dids, *self.entries.dids])) if added else _left(spec.dids, self.entries.dids)
        if not collections or (spec.dids and not dids):
            raise OperatorError("the filter would mirror nothing; `sluice filters set` replaces it as a whole")
        try:
            return FilterSpec(collections=collections, boundary=spec.boundary, dids=dids, signal=spec.signal)
        except ValidationError as err:
            raise OperatorError(": ".join(filter(None, (*mistake(err)[0][:1], mistake(err)[1])))) from err


def _repos(spec: FilterSpec) -> str:
    return f"all repos with records of {spec.signal}" if spec.signal else "all repos"


def _with(collections: list[str], more: list[str]) -> list[str]:
    """Patterns that a new one covers are left out."""
    for pattern in more:
        if not covers(collections, [pattern]):
            collections = [*(one for one in collections if not covers([pattern], [one])), pattern]
    return collections


def _without(collections: list[str], fewer: list[str]) -> list[str]:
    left = _left(collections, fewer)
    for pattern in fewer:
        if other := next((one for one in left if covers([one], [pattern]) or covers([pattern], [one])), None):
            raise OperatorError(f"the filter has {other}, not {pattern}; remove {other}, and add what shall stay")
    return left


def _left(entries: list[str], fewer: list[str]) -> list[str]:
    gone = set(fewer)
    return [one for one in entries if one not in gone]
