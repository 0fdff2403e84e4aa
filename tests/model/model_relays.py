"""The relays of the gate's model as actors: each has its own sequence, order, losses, takedowns and lag.

A relay passes a PDS's events on under numbers of its own, and the PDS's `time` as it is. It takes accounts down by itself,
with its own clock: it then passes nothing of theirs on until it lifts the takedown. Its sequence may restart, and a
connection may be read again from an earlier number.
"""

from dataclasses import dataclass, field
from typing import Any

from schemas import wire
from tests.model.model_network import stamped


@dataclass(slots=True)
class Relay:
    """One relay. `pipe`: events on their way to us; `sent`: what it has brought to us so far; `barred`: taken down here."""

    name: str
    seq: int
    epoch: int = 0
    pipe: list[Any] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    barred: set[str] = field(default_factory=set)

    def say(self, event: Any, step: int) -> Any:
        """The event under this relay's next number, into its pipe."""
        self.seq += step
        event = stamped(event, seq=self.seq, relay=self.name, epoch=self.epoch)
        self.pipe.append(event)
        return event


def content(event: Any) -> tuple[object, ...] | None:
    """What makes an identity event of two relays the same one, as the firehose's dedup has it."""
    if isinstance(event, wire.IdentityEvent):
        return ("identity", event.did, event.time, event.handle)
    return None
