"""com.atproto.identity, from what the mirror knows: nothing is requested from the network.

The mirror keeps the parts of a DID document that it uses, not the document: `document_of` writes one from them, in the form of the
PLC directory. Its other keys, services and aliases are missing.
"""

from dataclasses import dataclass
from typing import Any

from connectors.postgres.pooled_calls import PooledCalls
from protocol.handle import NO_HANDLE
from serve.guard import XrpcError
from serve.xrpc.parameters import Query, account_of, did_of, handle_of
from serve.xrpc.stored_repos import SQL, Row, did_of_account

_CONTEXT = ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"]
_KEY_PREFIX = "did:key:"


@dataclass(frozen=True, slots=True)
class KnownIdentity:
    """`handle`: proven by document and domain, else `handle.invalid`."""

    did: str
    handle: str
    document: dict[str, Any]


def find_identity(calls: PooledCalls, did: str) -> KnownIdentity:
    """What is known of a DID. Raises XrpcError(DidNotFound)."""
    (row,) = calls.rows(SQL["identity"], {"did": did})
    repo = next(iter(calls.repo(SQL["repo"], did)), None)
    if not row["known"] and (repo is None or repo["signing_key"] is None):
        raise XrpcError("DidNotFound", f"this mirror does not know the DID document of {did}")
    parts = row if row["known"] or repo is None else _of_repo(repo)
    return KnownIdentity(did, row["handle"] or NO_HANDLE, document_of(did, parts))


def _of_repo(repo: Row) -> Row:
    """The parts that the last fetch of the repo used: the identity is deleted by an #identity event until it is resolved again."""
    other = {"label_key": None, "labeler": None}
    return {"pds": repo["host"], "claimed": repo["handle"], "signing_key": repo["signing_key"], **other}


def document_of(did: str, parts: Row) -> dict[str, Any]:
    """A DID document with these parts: `claimed` handle, `signing_key`, `label_key`, `pds`, `labeler`."""
    keys = [("atproto", parts["signing_key"]), ("atproto_label", parts["label_key"])]
    services = [
        ("atproto_pds", "AtprotoPersonalDataServer", parts["pds"]),
        ("atproto_labeler", "AtprotoLabeler", parts["labeler"]),
    ]
    return {
        "@context": _CONTEXT,
        "id": did,
        "alsoKnownAs": [f"at://{parts['claimed']}"] if parts["claimed"] else [],
        "verificationMethod": [
            {
                "id": f"{did}#{name}",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": key.removeprefix(_KEY_PREFIX),
            }
            for name, key in keys
            if key
        ],
        "service": [
            {"id": f"#{name}", "type": kind, "serviceEndpoint": endpoint}
            for name, kind, endpoint in services
            if endpoint
        ],
    }


def resolve_handle(calls: PooledCalls, query: Query) -> Row:
    """The DID of a proven handle."""
    return {"did": did_of_account(calls, handle_of(query))}


def resolve_did(calls: PooledCalls, query: Query) -> Row:
    """The DID document."""
    return {"didDoc": find_identity(calls, did_of(query)).document}


def resolve_identity(calls: PooledCalls, query: Query) -> Row:
    """DID, proven handle and DID document of an account."""
    found = find_identity(calls, did_of_account(calls, account_of(query, "identifier")))
    return {"did": found.did, "handle": found.handle, "didDoc": found.document}
