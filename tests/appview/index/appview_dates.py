"""Dates that a record may claim for itself."""

from __future__ import annotations

from dataclasses import replace

from tests.appview.index.appview_world import Write, at

DATES = (at(0), at(1.99), "1970-01-01T00:00:00.000Z", "2099-01-01T00:00:00.000Z", "0001-01-01T00:00:00Z")


def dated(write: Write, date: str) -> Write:
    """The same record with another date of creation."""
    return replace(write, record={**(write.record or {}), "createdAt": date})
