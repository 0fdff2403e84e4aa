"""Account statuses: (active, status) as a relay or PDS says them → what they mean for the repo.

A status is the host's that emits it. `active: false` with `throttled` or `desynchronized` says that the emitter does not follow
the account now (it is over its PDS's limit at this relay, or its stream broke); its PDS goes on serving it, and it is mirrored
from there. All others, unknown ones too, hide it.
"""

NOT_FOLLOWED = frozenset({"throttled", "desynchronized"})

LEFT_BEHIND = frozenset({"deleted", "deactivated"})
"""What a PDS also says of an account that has moved to another one."""

TAKEN_DOWN = frozenset({"takendown", "suspended"})
"""What a relay decides for itself: a listing's word on them is as good as an #account."""


def status_beside(active: bool, status: str | None) -> str | None:
    """The status to keep: beside `active` only one that does not hide the account; what hides it has a name."""
    if active:
        return status if status in NOT_FOLLOWED else None
    return status or "inactive"


def is_served(active: bool, status: str | None) -> bool:
    """Is there, as far as this tells, a repo that its PDS serves?"""
    return active or status in NOT_FOLLOWED
