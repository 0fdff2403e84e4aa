"""Reason codes of dead letters, each with a line of help. A test checks that every rejection reason is listed."""

from enum import StrEnum


class DeadReason(StrEnum):
    """Code of a dead letter."""

    # shapes
    UNDECODABLE = "undecodable"
    BAD_HEADER = "bad_header"
    BAD_FIELD = "bad_field"
    TOO_LARGE = "too_large"
    BAD_TASK = "bad_task"
    REFUSED_BY_DATABASE = "refused_by_database"
    FAILED = "failed"
    # commits
    BAD_CAR = "bad_car"
    ROOT_IS_NOT_COMMIT = "root_is_not_commit"
    NO_COMMIT_BLOCK = "no_commit_block"
    BAD_COMMIT = "bad_commit"
    WRONG_DID = "wrong_did"
    WRONG_REV = "wrong_rev"
    FUTURE_REV = "future_rev"
    BAD_OPS = "bad_ops"
    OPS_UNKNOWN = "ops_unknown"
    BAD_SIGNATURE = "bad_signature"
    NO_KEY = "no_key"
    WRONG_PREV_DATA = "wrong_prev_data"
    OP_NOT_IN_TREE = "op_not_in_tree"
    BAD_TREE = "bad_tree"
    SYNC_TOO_LARGE = "sync_too_large"
    TOO_BIG = "too_big"
    TOO_BIG_NO_BLOCK = "too_big_no_block"
    BLOCKS_TOO_LARGE = "blocks_too_large"
    TOO_MANY_OPS = "too_many_ops"
    DUPLICATE_PATH = "duplicate_path"
    MISSING_PROOF = "missing_proof"
    NO_PREV = "no_prev"
    MESSAGE_TOO_LARGE = "message_too_large"
    # labels
    NOT_A_MAP = "not_a_map"
    BAD_VERSION = "bad_version"
    BAD_SRC = "bad_src"
    BAD_URI = "bad_uri"
    BAD_VAL = "bad_val"
    BAD_CTS = "bad_cts"
    BAD_EXP = "bad_exp"
    BAD_CID = "bad_cid"
    BAD_NEG = "bad_neg"
    BAD_SIG = "bad_sig"
    UNLISTED = "unlisted"

    @classmethod
    def of(cls, code: str) -> "DeadReason":
        """The reason with this code, or UNLISTED: an unknown code must not stop a flow; the dead letter's error has it."""
        return _BY_CODE.get(code, cls.UNLISTED)


HELP: dict[DeadReason, str] = {
    DeadReason.UNDECODABLE: "the bytes are no DAG-CBOR frame, or no JSON message of this topic",
    DeadReason.BAD_HEADER: "the frame is not a header and a body",
    DeadReason.BAD_FIELD: "a field is missing or of a wrong type; of a signed commit the repo is fetched again",
    DeadReason.TOO_LARGE: "larger than the protocol allows, or than the log takes",
    DeadReason.BAD_TASK: "a message that names no repo and attempt: nothing to claim",
    DeadReason.REFUSED_BY_DATABASE: "PostgreSQL refuses the values of this message",
    DeadReason.FAILED: "our own code failed on this frame: the error names the exception and its place; please report it",
    DeadReason.BAD_CAR: "the blocks are no CAR, or one does not hash to its CID; with a signed commit the repo is fetched again",
    DeadReason.ROOT_IS_NOT_COMMIT: "the CAR's root is not the commit that the event names; the repo is fetched again",
    DeadReason.NO_COMMIT_BLOCK: "the commit's own block is not in the CAR",
    DeadReason.BAD_COMMIT: "the commit block is no commit of version 3",
    DeadReason.WRONG_DID: "the commit belongs to another account than the event says",
    DeadReason.WRONG_REV: "the signed commit has another rev than the event says; the repo is fetched again",
    DeadReason.FUTURE_REV: "the rev is more than five minutes ahead: it would freeze the repo",
    DeadReason.BAD_OPS: "the operations are no list of creates, updates and deletes",
    DeadReason.OPS_UNKNOWN: "the operations cannot be known from this event; the repo is fetched again instead",
    DeadReason.BAD_SIGNATURE: "the account's key did not sign this commit, or the labeler's this label",
    DeadReason.NO_KEY: "the DID document names no usable signing key",
    DeadReason.WRONG_PREV_DATA: "the operations do not lead from the tree before to the signed one; the repo is fetched again",
    DeadReason.OP_NOT_IN_TREE: "an operation names another record than the signed tree holds; the repo is fetched again",
    DeadReason.BAD_TREE: "the tree's nodes in the event are malformed; the repo is fetched again",
    DeadReason.SYNC_TOO_LARGE: "a #sync with more blocks than the protocol allows; its signed commit is used all the same",
    DeadReason.TOO_BIG: "the event says that it is too big to carry its operations; the repo is fetched again",
    DeadReason.TOO_BIG_NO_BLOCK: "the same, and the commit's own block is missing too: control asks its PDS once whether there is news",
    DeadReason.BLOCKS_TOO_LARGE: "more bytes of blocks than the protocol allows; the repo is fetched again",
    DeadReason.TOO_MANY_OPS: "more operations than the protocol allows; the repo is fetched again",
    DeadReason.DUPLICATE_PATH: "two operations on one path; the repo is fetched again",
    DeadReason.MISSING_PROOF: "the event lacks blocks that would prove its operations; the repo is fetched again",
    DeadReason.NO_PREV: "an update or delete does not name what it replaces; the repo is fetched again",
    DeadReason.MESSAGE_TOO_LARGE: "the event's message is larger than the log takes; the repo is fetched again",
    DeadReason.NOT_A_MAP: "the label is no map",
    DeadReason.BAD_VERSION: "the label has another version than 1",
    DeadReason.BAD_SRC: "the label's source is no DID, or not the labeler that sent it",
    DeadReason.BAD_URI: "the label's subject is no URI, or too long for the table's key together with source and value",
    DeadReason.BAD_VAL: "the label's value is missing, too long, or holds a NUL",
    DeadReason.BAD_CTS: "the label's creation time is none",
    DeadReason.BAD_EXP: "the label's expiry time is none",
    DeadReason.BAD_CID: "the label's cid is none",
    DeadReason.BAD_NEG: "the label's negation is neither true nor false",
    DeadReason.BAD_SIG: "the label's signature is none",
    DeadReason.UNLISTED: "a refusal whose code this release does not list: see the error",
}

_BY_CODE: dict[str, DeadReason] = {reason.value: reason for reason in DeadReason}
