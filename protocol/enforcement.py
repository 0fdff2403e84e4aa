"""The consequence of a failed check, as configured."""

from enum import StrEnum


class Enforcement(StrEnum):
    """Reject the event, or accept it and count the failure."""

    ENFORCE = "enforce"
    REPORT = "report"
