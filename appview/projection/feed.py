"""Valid records of posts, likes, reposts and gates → rows."""

from appview.projection.embeds import embed_rows
from appview.projection.rich import json_text, mentions
from appview.projection.values import Notice, Projected, Record, Reply, Row, Source
from protocol.lexicon.datetimes import created_at
from protocol.lexicon.formats import at_uri_parts

POST = "app.bsky.feed.post"


def like(source: Source, record: Record) -> Projected:
    return _interaction("like", source, record)


def repost(source: Source, record: Record) -> Projected:
    """A feed item exists even if the account has reposted the subject before."""
    projected = _interaction("repost", source, record)
    uri = projected.uri
    item: Row = (uri, source.cid, "repost", record["subject"]["uri"], source.did, projected.sort_at)
    projected.rows["feed_item"] = [item]
    return projected


def _interaction(kind: str, source: Source, record: Record) -> Projected:
    uri, created, indexed = source.uri, created_at(record["createdAt"]), source.indexed_at
    sort_at = created if created < indexed else indexed
    subject = record["subject"]
    about = subject["uri"]
    via = record.get("via")
    via_uri, via_cid = (None, None) if via is None else (via["uri"], via["cid"])
    row: Row = (uri, source.cid, source.did, about, subject["cid"], via_uri, via_cid, created, indexed)
    notices = []
    author = at_uri_parts(about)[0]
    if author != source.did:  # an action on one's own post makes no notification, not even for its reposter
        notices.append(Notice(author, kind, about.rstrip("/"), sort_at))
        if via_uri is not None and (reposter := at_uri_parts(via_uri)[0]) != source.did:
            notices.append(Notice(reposter, f"{kind}-via-repost", via_uri.rstrip("/"), sort_at))
    return Projected(uri, {kind: [row]}, notices, sort_at)


def post(source: Source, record: Record) -> Projected:
    uri, created, indexed = source.uri, created_at(record["createdAt"]), source.indexed_at
    sort_at = created if created < indexed else indexed
    refs: tuple[str | None, ...] = (None, None, None, None)
    reply = None
    rows: dict[str, list[Row]] = {}
    if (written := record.get("reply")) is not None:
        root, parent = written["root"], written["parent"]
        refs = (root["uri"], root["cid"], parent["uri"], parent["cid"])
        reply = Reply(root["uri"], parent["uri"])
        if at_uri_parts(root["uri"])[0] == source.did:
            rows["op_thread_reply"] = [(root["uri"], parent["uri"], uri)]
    langs, tags = json_text(record.get("langs")), json_text(record.get("tags"))
    rows["post"] = [(uri, source.cid, source.did, record["text"], *refs, created, indexed, langs, tags)]
    rows["feed_item"] = [(uri, source.cid, "post", uri, source.did, sort_at)]
    mentioned = mentions(record) if "facets" in record else ()
    notices = [Notice(did, "mention", None, sort_at) for did in mentioned if did != source.did]
    if (embed := record.get("embed")) is not None:
        rows |= embed_rows(uri, embed)
        _quote(source, rows, notices, created, sort_at)
    return Projected(uri, rows, notices, sort_at, reply, mentioned)


def _quote(source: Source, rows: dict[str, list[Row]], notices: list[Notice], created: str, sort_at: str) -> None:
    """If an embedded record is a post, add the quote, and a notification unless its author gets another one."""
    for uri, embedded, cid in rows.get("post_embed_record", ()):
        subject = str(embedded)
        author, collection, _ = at_uri_parts(subject)
        if collection == POST:
            rows["quote"] = [(uri, source.cid, subject, cid, created, source.indexed_at)]
            if author != source.did and all(author != notice.did for notice in notices):
                notices.append(Notice(author, "quote", subject.rstrip("/"), sort_at))


def thread_gate(source: Source, record: Record) -> Projected:
    return _gate("thread_gate", source, record)


def post_gate(source: Source, record: Record) -> Projected:
    return _gate("post_gate", source, record)


def _gate(table: str, source: Source, record: Record) -> Projected:
    """A gate and its post must have the same repo and key."""
    uri, governed = source.uri, record["post"]
    authority, _, rkey = at_uri_parts(governed)
    if authority != source.did or rkey != source.rkey:
        return Projected(uri, invalid="/post: is not in the gate's own repository, or has another record key")
    created = created_at(record["createdAt"])
    row: Row = (uri, source.cid, source.did, governed, created, source.indexed_at)
    return Projected(uri, {table: [row]}, sort_at=min(created, source.indexed_at))
