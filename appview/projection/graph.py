"""Valid records of accounts, follows, blocks, lists and labelers → rows. `project` has validated them."""

from appview.projection.rich import blob_cid, facets_text
from appview.projection.values import Notice, Projected, Record, Row, Source
from protocol.lexicon.datetimes import created_at
from protocol.lexicon.formats import at_uri_parts

LIST = "app.bsky.graph.list"


def profile(source: Source, record: Record) -> Projected:
    """createdAt is kept as written; without one, it is the time of indexing."""
    uri = source.uri
    if source.rkey != "self":
        return Projected(uri)
    joined = record.get("joinedViaStarterPack", {}).get("uri")
    row = (
        *(uri, source.cid, source.did, record.get("displayName"), record.get("description")),
        *(blob_cid(record.get("avatar")), blob_cid(record.get("banner"))),
        *(joined, record.get("createdAt", source.indexed_at), source.indexed_at),
    )
    notices = []
    if joined is not None:  # unlike all others, dated by the time of indexing
        notices.append(Notice(at_uri_parts(joined)[0], "starterpack-joined", joined, source.indexed_at))
    return Projected(uri, {"profile": [row]}, notices, source.indexed_at)


def follow(source: Source, record: Record) -> Projected:
    """Following oneself makes a notification too."""
    projected = _one("follow", source, record, record["subject"])
    projected.notices.append(Notice(record["subject"], "follow", None, projected.sort_at))
    return projected


def block(source: Source, record: Record) -> Projected:
    return _one("actor_block", source, record, record["subject"])


def list_block(source: Source, record: Record) -> Projected:
    return _one("list_block", source, record, record["subject"])


def opt_out(source: Source, record: Record) -> Projected:
    """An opt-out of lists; a subject that is not the URI of a list makes no row."""
    subject = record["subject"]
    authority, collection, rkey = at_uri_parts(subject)
    if not authority.startswith("did:") or collection != LIST or subject != f"at://{authority}/{collection}/{rkey}":
        return Projected(source.uri)
    return _one("reference_list_opt_out", source, record, subject)


def item_list(source: Source, record: Record) -> Projected:
    head = (record["name"], record["purpose"])
    return _described("list", source, record, head)


def list_item(source: Source, record: Record) -> Projected:
    """An item may only be in a list of its own repo."""
    if at_uri_parts(record["list"])[0] != source.did:
        return Projected(source.uri, invalid="/list: is not in the item's own repository")
    return _one("list_item", source, record, record["subject"], record["list"])


def starter_pack(source: Source, record: Record) -> Projected:
    return _one("starter_pack", source, record, record["name"])


def labeler(source: Source, record: Record) -> Projected:
    return _one("labeler", source, record) if source.rkey == "self" else Projected(source.uri)


def generator(source: Source, record: Record) -> Projected:
    head = (record["did"], record["displayName"])
    return _described("feed_generator", source, record, head)


def verification(source: Source, record: Record) -> Projected:
    uri, subject, created = source.uri, record["subject"], created_at(record["createdAt"])
    sort_at = min(created, source.indexed_at)
    row = (
        *(uri, source.cid, source.rkey, source.did, subject, record["handle"], record["displayName"]),
        *(created, source.indexed_at),
    )
    return Projected(uri, {"verification": [row]}, [Notice(subject, "verified", None, sort_at)], sort_at)


def unshown(source: Source, _record: Record) -> Projected:
    """A collection that the AppView keeps only as a record."""
    return Projected(source.uri)


def _one(table: str, source: Source, record: Record, *middle: str | None) -> Projected:
    """A row of uri, cid, creator, the columns of the subject, and the two times."""
    uri, created = source.uri, created_at(record["createdAt"])
    row: Row = (uri, source.cid, source.did, *middle, created, source.indexed_at)
    return Projected(uri, {table: [row]}, sort_at=min(created, source.indexed_at))


def _described(table: str, source: Source, record: Record, head: tuple[str, str]) -> Projected:
    facets = facets_text(record.get("descriptionFacets"))
    return _one(table, source, record, *head, record.get("description"), facets, blob_cid(record.get("avatar")))
