"""What a failed check does."""

from enum import StrEnum


class Enforcement(StrEnum):
    """Reject the event, or accept it and count the failure."""

    ENFORCE = "enforce"
    REPORT = "report"
