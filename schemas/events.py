"""The messages of every topic: the one definition of their shapes.

Each class is the JSON value of a Kafka message whose key is the DID. `schemas.wire` compiles the same classes into fast
codecs, `tools.json_schemas` writes them as JSON Schemas. Times are `YYYY-MM-DDTHH:MM:SS.mmmZ`; CIDs are base32 strings;
blocks are unpadded base64; a record is the JSON of its DAG-CBOR block (`{"$link"}` and `{"$bytes"}` for links and bytes).
Source: the AT Protocol's event stream and sync lexicons, reduced to what a consumer needs.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.topics import (
    DEAD_LETTER,
    FIREHOSE_BACKFILL,
    FIREHOSE_LIVE,
    FIREHOSE_SEQUENCE,
    LABEL_LIVE,
    REPO_BACKFILL,
    REPO_RESYNC,
)

RawJson = Annotated[Any, "raw-json"]
"""JSON that the codecs carry as bytes, undecoded (a record, or the payload of a dead letter)."""


class Message(BaseModel):
    """Base of all messages: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RepoTask(Message):
    """`repo_backfill`, `repo_resync`: fetch this repo. It names the attempt of the repo's row when it was queued."""

    did: str
    attempt: int = Field(description="attempt of the repo when queued; a claim requires it unchanged")
    reason: str = Field(description="why it was queued: listed, discovered, desync, reactivated, retry, …")
    rev: str | None = Field(default=None, description="rev that the listing gave")
    host: str | None = Field(default=None, description="PDS host, where the listing knew it")
    active: bool = True
    status: str | None = None
    job: int | None = Field(default=None, description="backfill_job that asked for it")


class Op(Message):
    """One record operation of a commit."""

    action: Literal["create", "update", "delete"]
    collection: str
    rkey: str
    cid: str | None = None
    prev: str | None = Field(default=None, description="CID that an update or delete replaces")
    record: RawJson | None = None
    raw: str | None = Field(
        default=None, description="the DAG-CBOR block in base64, where JSON cannot reproduce its CID"
    )
    reason: str | None = Field(default=None, description="why there is no (exact) JSON body")


class CommitEvent(Message):
    """`firehose_live`: one commit of a repo with its operations."""

    type: Literal["commit"] = "commit"
    seq: int
    time: str
    did: str
    rev: str
    commit: str
    commit_block: str
    data: str = Field(description="MST root after this commit")
    ops: list[Op]
    since: str | None = None
    prev_data: str | None = Field(default=None, description="MST root before this commit; absent in legacy events")
    relay: str = ""


class SyncEvent(Message):
    """`firehose_live`: the repo stands at this rev and MST root; no operations are known."""

    type: Literal["sync"] = "sync"
    seq: int
    time: str
    did: str
    rev: str
    data: str
    commit: str | None = None
    commit_block: str | None = None
    relay: str = ""


class IdentityEvent(Message):
    """`firehose_live`: the DID document may have changed; the handle is a hint."""

    type: Literal["identity"] = "identity"
    seq: int
    time: str
    did: str
    handle: str | None = None
    relay: str = ""
    epoch: int = Field(
        default=0, description="which of the relay's sequences `seq` belongs to: Unix time at which we began it"
    )


class AccountEvent(Message):
    """`firehose_live`: the account's status at the emitting host."""

    type: Literal["account"] = "account"
    seq: int
    time: str
    did: str
    active: bool
    status: str | None = None
    relay: str = ""
    epoch: int = Field(
        default=0, description="which of the relay's sequences `seq` belongs to: Unix time at which we began it"
    )


class CreateEvent(Message):
    """`firehose_backfill`: one record of the snapshot that an attempt fetched."""

    type: Literal["create"] = "create"
    did: str
    attempt: int
    rev: str
    collection: str
    rkey: str
    cid: str
    time: str
    commit: str
    seq: int = -1
    record: RawJson | None = None
    raw: str | None = None
    reason: str | None = None


class RepoOutcome(Message):
    """`firehose_backfill`: how an attempt ended; it follows all records of the attempt."""

    type: Literal["repo"] = "repo"
    did: str
    attempt: int
    status: Literal["synced", "unavailable", "deleted"]
    active: bool
    time: str
    rev: str | None = None
    commit: str | None = None
    commit_block: str | None = None
    data: str | None = None
    count: int | None = Field(default=None, description="records that the attempt produced")
    reason: str | None = Field(default=None, description="account status or error name, where not synced")
    account_time: str = Field(default="", description="ratchet of the repo, read at the claim")
    account_seq: int = 0
    account_relay: str = Field(default="", description="relay and epoch that `account_seq` belongs to")
    account_seen: str = Field(default="", description="the rest of that ratchet, as JSON: see steps/gate/ratchet.py")
    host: str | None = None
    handle: str | None = None
    signing_key: str | None = None


class LabelEvent(Message):
    """`label_live`: one label or negation, keyed by the DID of its subject; `uri:` and a hash where the subject has no DID."""

    seq: int
    src: str
    uri: str
    val: str
    cts: str
    cid: str | None = None
    neg: bool = False
    exp: str | None = None
    sig: str | None = None
    relay: str = ""


class DeadLetter(Message):
    """`dead_letter`: something that could not be processed, with the reason and (up to 256 KiB of) the thing itself."""

    topic: str = Field(description="topic, or flow and upstream where there was no topic yet")
    reason: str
    error: str
    time: str
    did: str | None = None
    partition: int | None = None
    offset: int | None = None
    payload: str | None = Field(default=None, description="base64, cut at 256 KiB")
    payload_sha256: str | None = None
    payload_size: int = 0
    received: int | None = Field(
        default=None, description="Unix time in ms when the frame or message was received; a retry keeps it"
    )


class SequenceMark(Message):
    """`firehose_sequence`: the messages of `firehose_live` before these offsets have their numbers (steps/sequence.py)."""

    after: int = Field(description="offset of the mark that its writer had read last; -1: none")
    base: int = Field(description="`seq` of a message is `base` and 256 for each message before it")
    time: int = Field(description="time of the next message at the earliest, Unix time in microseconds")
    ends: list[int] = Field(description="next offset of each partition of `firehose_live`")


LiveEvent = CommitEvent | SyncEvent | IdentityEvent | AccountEvent
BackfillEvent = CreateEvent | RepoOutcome

TOPIC_MESSAGES: dict[str, Any] = {
    REPO_BACKFILL: RepoTask,
    REPO_RESYNC: RepoTask,
    FIREHOSE_LIVE: LiveEvent,
    FIREHOSE_BACKFILL: BackfillEvent,
    LABEL_LIVE: LabelEvent,
    FIREHOSE_SEQUENCE: SequenceMark,
    DEAD_LETTER: DeadLetter,
}
