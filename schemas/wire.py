"""The messages of `schemas.events` as msgspec structs with the same names and fields.

Each class is generated from the pydantic model of its name. Hot paths thus validate only once, and record bodies pass through
undecoded (`RawJson` fields are `msgspec.Raw`). `decode_*(bytes)` raise `msgspec.DecodeError` (or its subclass
`ValidationError`) on malformed messages.
"""

from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel

from schemas import events

if TYPE_CHECKING:
    from schemas.events import (
        AccountEvent,
        CommitEvent,
        CreateEvent,
        DeadLetter,
        IdentityEvent,
        LabelEvent,
        Op,
        RepoOutcome,
        RepoTask,
        SequenceMark,
        SyncEvent,
    )
else:
    _compiled: dict[type[BaseModel], Any] = {}

    def _field_type(annotation: Any, metadata: list[Any]) -> Any:
        if "raw-json" in metadata or "raw-json" in getattr(annotation, "__metadata__", ()):
            return msgspec.Raw
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return _compile(annotation)
        if get_origin(annotation) in (Union, UnionType, list):
            parts = tuple(_field_type(part, []) for part in get_args(annotation))
            if msgspec.Raw in parts:
                return msgspec.Raw
            return list[parts[0]] if get_origin(annotation) is list else Union[parts]  # noqa: UP007  # built at run time
        return annotation

    def _compile(model: type[BaseModel]) -> Any:
        if model in _compiled:
            return _compiled[model]
        tag: str | None = None
        fields: list[Any] = []
        for name, info in model.model_fields.items():
            if name == "type" and get_origin(info.annotation) is Literal:
                tag = get_args(info.annotation)[0]
                continue
            kind = _field_type(info.annotation, info.metadata)
            if info.is_required():
                fields.append((name, kind))
            elif kind is msgspec.Raw:
                fields.append((name, kind, msgspec.field(default=ABSENT)))
            else:
                fields.append((name, kind, msgspec.field(default=info.default)))
        struct = msgspec.defstruct(
            model.__name__,
            fields,
            module=__name__,
            kw_only=True,
            omit_defaults=True,
            forbid_unknown_fields=True,
            gc=False,
            tag_field="type" if tag else None,
            tag=tag,
        )
        struct.__doc__ = model.__doc__
        _compiled[model] = struct
        return struct


ABSENT: Final = msgspec.Raw(b"null")
"""Default of a missing body of an op or record."""

if not TYPE_CHECKING:
    RepoTask = _compile(events.RepoTask)
    Op = _compile(events.Op)
    CommitEvent = _compile(events.CommitEvent)
    SyncEvent = _compile(events.SyncEvent)
    IdentityEvent = _compile(events.IdentityEvent)
    AccountEvent = _compile(events.AccountEvent)
    CreateEvent = _compile(events.CreateEvent)
    RepoOutcome = _compile(events.RepoOutcome)
    LabelEvent = _compile(events.LabelEvent)
    DeadLetter = _compile(events.DeadLetter)
    SequenceMark = _compile(events.SequenceMark)

LiveEvent = CommitEvent | SyncEvent | IdentityEvent | AccountEvent
BackfillEvent = CreateEvent | RepoOutcome

encode = msgspec.json.Encoder().encode
decode_task = msgspec.json.Decoder(RepoTask).decode
decode_live = msgspec.json.Decoder(LiveEvent).decode
decode_backfill = msgspec.json.Decoder(BackfillEvent).decode
decode_label = msgspec.json.Decoder(LabelEvent).decode
decode_mark = msgspec.json.Decoder(SequenceMark).decode
decode_dead_letter = msgspec.json.Decoder(DeadLetter).decode


def body(raw: Any) -> bytes | None:
    """JSON text of a `RawJson` field; None if it is missing or null."""
    text = bytes(raw) if raw is not None else b"null"
    return None if text == b"null" else text


__all__ = [
    "ABSENT",
    "AccountEvent",
    "BackfillEvent",
    "CommitEvent",
    "CreateEvent",
    "DeadLetter",
    "IdentityEvent",
    "LabelEvent",
    "LiveEvent",
    "Op",
    "RepoOutcome",
    "RepoTask",
    "SequenceMark",
    "SyncEvent",
    "body",
    "decode_backfill",
    "decode_dead_letter",
    "decode_label",
    "decode_live",
    "decode_mark",
    "decode_task",
    "encode",
]
