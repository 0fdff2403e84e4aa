"""Reason codes of dead letters, each with a line of help. A test checks that every rejection reason is listed."""

from enum import StrEnum


class DeadReason(StrEnum):
    """Code of a dead letter, with its `help`."""

    _value_: str
    help: str

    def __new__(cls, code: str, help: str) -> "DeadReason":
        reason = str.__new__(cls, code)
        reason._value_, reason.help = code, help
        return reason

    # shapes
    UNDECODABLE = "undecodable", "the bytes are no DAG-CBOR frame, or no JSON message of this topic"
    BAD_HEADER = "bad_header", "the frame does not consist of a header and a body"
    BAD_FIELD = (
        "bad_field",
        "a field is missing or has the wrong type; if the commit is signed, the repo is fetched again",
    )
    TOO_LARGE = "too_large", "larger than the protocol or the log allows"
    BAD_TASK = "bad_task", "the message does not name a repo and an attempt"
    REFUSED_BY_DATABASE = "refused_by_database", "PostgreSQL rejects the values of this message"
    FAILED = "failed", "a defect in Sluice: the error names the exception and its location; please report it"
    # commits
    BAD_CAR = (
        "bad_car",
        "the blocks are not a valid CAR, or a block does not match its CID; if the commit is signed, the repo is fetched again",
    )
    ROOT_IS_NOT_COMMIT = (
        "root_is_not_commit",
        "the root of the CAR is not the commit that the event names; the repo is fetched again",
    )
    NO_COMMIT_BLOCK = "no_commit_block", "the CAR does not contain the commit block"
    BAD_COMMIT = "bad_commit", "the commit block is not a version 3 commit"
    WRONG_DID = "wrong_did", "the commit belongs to a different account than the event names"
    WRONG_REV = "wrong_rev", "the signed commit has a different rev than the event; the repo is fetched again"
    FUTURE_REV = (
        "future_rev",
        "the rev is more than five minutes in the future; accepting it would block later commits of the repo",
    )
    BAD_OPS = "bad_ops", "the operations are not a list of creates, updates and deletes"
    OPS_UNKNOWN = "ops_unknown", "the event does not determine the operations; the repo is fetched again"
    BAD_SIGNATURE = "bad_signature", "the signature does not match the key of the account or labeler"
    NO_KEY = "no_key", "the DID document has no usable signing key"
    WRONG_PREV_DATA = (
        "wrong_prev_data",
        "the operations do not lead from the tree before to the signed one; the repo is fetched again",
    )
    OP_NOT_IN_TREE = (
        "op_not_in_tree",
        "an operation names a different record than the signed tree; the repo is fetched again",
    )
    BAD_TREE = "bad_tree", "tree nodes in the event are malformed; the repo is fetched again"
    SYNC_TOO_LARGE = (
        "sync_too_large",
        "a #sync with more blocks than the protocol allows; its signed commit is still used",
    )
    TOO_BIG = "too_big", "the event is marked as too big to carry its operations; the repo is fetched again"
    TOO_BIG_NO_BLOCK = (
        "too_big_no_block",
        "as too_big, and the commit block is missing: control asks the PDS once for its latest commit",
    )
    BLOCKS_TOO_LARGE = "blocks_too_large", "more bytes of blocks than the protocol allows; the repo is fetched again"
    TOO_MANY_OPS = "too_many_ops", "more operations than the protocol allows; the repo is fetched again"
    DUPLICATE_PATH = "duplicate_path", "two operations on one path; the repo is fetched again"
    MISSING_PROOF = "missing_proof", "blocks that prove the operations are missing; the repo is fetched again"
    NO_PREV = "no_prev", "an update or delete does not name the previous record; the repo is fetched again"
    MESSAGE_TOO_LARGE = "message_too_large", "the message is larger than the log allows; the repo is fetched again"
    # labels
    NOT_A_MAP = "not_a_map", "the label is not a map"
    BAD_VERSION = "bad_version", "the label's version is not 1"
    BAD_SRC = "bad_src", "the label's source is not a DID, or not the labeler that sent it"
    BAD_URI = (
        "bad_uri",
        "the label's subject is not a URI, or source, subject and value together are too long for the table's key",
    )
    BAD_VAL = "bad_val", "the label's value is missing, too long, or contains a NUL"
    BAD_CTS = "bad_cts", "the label's creation time is invalid"
    BAD_EXP = "bad_exp", "the label's expiry time is invalid"
    BAD_CID = "bad_cid", "the label's cid is invalid"
    BAD_NEG = "bad_neg", "the label's `neg` is not a boolean"
    BAD_SIG = "bad_sig", "the label's signature is not a byte string of valid length"
    UNLISTED = "unlisted", "the reason is unknown to this release; see the error"

    @classmethod
    def of(cls, code: str) -> "DeadReason":
        """The reason with this code, or UNLISTED: an unknown code must not stop a flow; the dead letter's error has it."""
        return _BY_CODE.get(code, cls.UNLISTED)


_BY_CODE: dict[str, DeadReason] = {reason.value: reason for reason in DeadReason}
