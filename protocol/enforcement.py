"""What a failed check does."""

from enum import StrEnum


class Enforcement(StrEnum):
    """Refuse the event, count it and go on, or skip the check."""

    ENFORCE = "enforce"
    COUNT = "count"
    OFF = "off"
