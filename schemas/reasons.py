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
    DeadReason.BAD_HEADER: "the frame does not consist of a header and a body",
    DeadReason.BAD_FIELD: "a field is missing or has the wrong type; if the commit is signed, the repo is fetched again",
    DeadReason.TOO_LARGE: "larger than the protocol or the log allows",
    DeadReason.BAD_TASK: "the message does not name a repo and an attempt",
    DeadReason.REFUSED_BY_DATABASE: "PostgreSQL rejects the values of this message",
    DeadReason.FAILED: "a defect in Sluice: the error names the exception and its location; please report it",
    DeadReason.BAD_CAR: "the blocks are not a valid CAR, or a block does not match its CID; if the commit is signed, the repo is fetched again",
    DeadReason.ROOT_IS_NOT_COMMIT: "the root of the CAR is not the commit that the event names; the repo is fetched again",
    DeadReason.NO_COMMIT_BLOCK: "the CAR does not contain the commit block",
    DeadReason.BAD_COMMIT: "the commit block is not a version 3 commit",
    DeadReason.WRONG_DID: "the commit belongs to a different account than the event names",
    DeadReason.WRONG_REV: "the signed commit has a different rev than the event; the repo is fetched again",
    DeadReason.FUTURE_REV: "the rev is more than five minutes in the future; accepting it would block later commits of the repo",
    DeadReason.BAD_OPS: "the operations are not a list of creates, updates and deletes",
    DeadReason.OPS_UNKNOWN: "the event does not determine the operations; the repo is fetched again",
    DeadReason.BAD_SIGNATURE: "the signature does not match the key of the account or labeler",
    DeadReason.NO_KEY: "the DID document has no usable signing key",
    DeadReason.WRONG_PREV_DATA: "the operations do not lead from the tree before to the signed one; the repo is fetched again",
    DeadReason.OP_NOT_IN_TREE: "an operation names a different record than the signed tree; the repo is fetched again",
    DeadReason.BAD_TREE: "tree nodes in the event are malformed; the repo is fetched again",
    DeadReason.SYNC_TOO_LARGE: "a #sync with more blocks than the protocol allows; its signed commit is still used",
    DeadReason.TOO_BIG: "the event is marked as too big to carry its operations; the repo is fetched again",
    DeadReason.TOO_BIG_NO_BLOCK: "as too_big, and the commit block is missing: control asks the PDS once for its latest commit",
    DeadReason.BLOCKS_TOO_LARGE: "more bytes of blocks than the protocol allows; the repo is fetched again",
    DeadReason.TOO_MANY_OPS: "more operations than the protocol allows; the repo is fetched again",
    DeadReason.DUPLICATE_PATH: "two operations on one path; the repo is fetched again",
    DeadReason.MISSING_PROOF: "blocks that prove the operations are missing; the repo is fetched again",
    DeadReason.NO_PREV: "an update or delete does not name the previous record; the repo is fetched again",
    DeadReason.MESSAGE_TOO_LARGE: "the message is larger than the log allows; the repo is fetched again",
    DeadReason.NOT_A_MAP: "the label is not a map",
    DeadReason.BAD_VERSION: "the label's version is not 1",
    DeadReason.BAD_SRC: "the label's source is not a DID, or not the labeler that sent it",
    DeadReason.BAD_URI: "the label's subject is not a URI, or source, subject and value together are too long for the table's key",
    DeadReason.BAD_VAL: "the label's value is missing, too long, or contains a NUL",
    DeadReason.BAD_CTS: "the label's creation time is invalid",
    DeadReason.BAD_EXP: "the label's expiry time is invalid",
    DeadReason.BAD_CID: "the label's cid is invalid",
    DeadReason.BAD_NEG: "the label's `neg` is not a boolean",
    DeadReason.BAD_SIG: "the label's signature is not a byte string of valid length",
    DeadReason.UNLISTED: "the reason is unknown to this release; see the error",
}

_BY_CODE: dict[str, DeadReason] = {reason.value: reason for reason in DeadReason}
