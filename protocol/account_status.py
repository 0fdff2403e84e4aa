"""Account statuses: what `active` and `status` of a relay or PDS mean for the repo.

A status belongs to the host that sends it. `active: false` with `throttled` or `desynchronized` means that the sender does not
follow the account now; the account's PDS still serves the repo, and it is mirrored from there. Every other status, known or
not, hides the account.
"""

NOT_FOLLOWED = frozenset({"throttled", "desynchronized"})

LEFT_BEHIND = frozenset({"deleted", "deactivated"})
"""Statuses that a PDS also gives an account that has moved to another PDS."""

TAKEN_DOWN = frozenset({"takendown", "suspended"})
"""Statuses that a relay decides itself: in a listing they are as reliable as in an #account event."""


def status_beside(active: bool, status: str | None) -> str | None:
    """The status to store. An active account keeps only a NOT_FOLLOWED one; a hidden account without a status is `inactive`."""
    if active:
        return status if status in NOT_FOLLOWED else None
    return status or "inactive"


def is_served(active: bool, status: str | None) -> bool:
    """Whether the account's PDS serves the repo, judged by this status."""
    return active or status in NOT_FOLLOWED
