"""Where our tables say something else than the official indexer's, on purpose; docs/appview.md lists the same.

Each is a statement that makes the official indexer's tables say what ours do, so that all other rows, and all answers, can be
compared as they are. A statement that changes nothing is no difference, and fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psycopg

from tests.acceptance.appview_author import Doubled, Written

# %(gone)s: DIDs of accounts that were deleted; %(doubled)s: edits that made duplicates; %(early)s, %(undone)s: of the fetched history
ACCEPTED = {
    "of unknown order: a reply is refused by the gate that stands": """
        UPDATE post SET "violatesThreadGate" = true, "invalidReplyRoot" = coalesce("invalidReplyRoot", false)
        WHERE uri = ANY(%(early)s) AND "replyParent" IS NOT NULL""",
    "of unknown order: a quote is refused by the gate that stands": """
        UPDATE post SET "violatesEmbeddingRules" = true WHERE uri = ANY(%(early)s) AND "replyParent" IS NULL""",
    "of unknown order: nobody hears of what is refused": """
        DELETE FROM notification n WHERE n."recordUri" = ANY(%(early)s)""",
    "of unknown order: a gate that is no more has refused nothing": """
        WITH shown AS (
            UPDATE post SET "violatesThreadGate" = NULL, "invalidReplyRoot" = NULL, "violatesEmbeddingRules" = NULL
            WHERE uri = ANY(%(undone)s) RETURNING *)
        INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
        SELECT split_part(s.of, '/', 3), p.uri, p.cid, p.creator, s.reason, s.of, p."sortAt"
        FROM shown p CROSS JOIN LATERAL (
            SELECT p."replyParent" AS of, 'reply' AS reason WHERE p."replyParent" IS NOT NULL
            UNION ALL SELECT e."embedUri", 'quote' FROM post_embed_record e WHERE e."postUri" = p.uri) s""",
    "of unknown order: a post without gate had none": """
        UPDATE post SET "hasThreadGate" = nullif("hasThreadGate", false), "hasPostGate" = nullif("hasPostGate", false)
        WHERE "indexedAt" < %(fetched)s AND ("hasThreadGate" IS FALSE OR "hasPostGate" IS FALSE)""",
    "an edit that makes a duplicate is taken, not refused": """
        WITH edit AS (SELECT * FROM jsonb_to_recordset(%(doubled)s::jsonb) AS e (uri text, cid text, json text, owner text)),
        taken AS (UPDATE record r SET cid = e.cid, json = e.json FROM edit e WHERE r.uri = e.uri RETURNING e.*),
        likes AS (DELETE FROM "like" t USING taken e WHERE t.uri = e.uri),
        reposts AS (DELETE FROM repost t USING taken e WHERE t.uri = e.uri),
        follows AS (DELETE FROM follow t USING taken e WHERE t.uri = e.uri),
        blocks AS (DELETE FROM actor_block t USING taken e WHERE t.uri = e.uri),
        told AS (DELETE FROM notification n USING taken e WHERE n."recordUri" = e.uri),
        shared AS (UPDATE feed_item f SET cid = e.cid, "postUri" = e.json::jsonb -> 'subject' ->> 'uri', "sortAt" = e.json::jsonb ->> 'createdAt'
                   FROM taken e WHERE f.uri = e.uri)
        INSERT INTO duplicate_record (uri, cid, "duplicateOf", "indexedAt") SELECT uri, cid, owner, '' FROM taken""",
    "whose duplicate is edited away makes room for it": """
        WITH heir AS (
            INSERT INTO "like" (uri, cid, creator, subject, "subjectCid", "createdAt", "indexedAt")
            SELECT d.uri, d.cid, o.creator, r.json::jsonb -> 'subject' ->> 'uri', r.json::jsonb -> 'subject' ->> 'cid',
                   r.json::jsonb ->> 'createdAt', d."indexedAt"
            FROM duplicate_record d JOIN record r ON r.uri = d.uri JOIN "like" o ON o.uri = d."duplicateOf"
            WHERE o.subject <> r.json::jsonb -> 'subject' ->> 'uri'
            RETURNING *)
        INSERT INTO notification (did, "recordUri", "recordCid", author, reason, "reasonSubject", "sortAt")
        SELECT split_part(subject, '/', 3), uri, cid, creator, 'like', subject, "sortAt" FROM heir""",
    "an edited post keeps the reposts that show it": """
        INSERT INTO feed_item (uri, cid, type, "postUri", "originatorDid", "sortAt")
        SELECT r.uri, r.cid, 'repost', r.subject, r.creator, r."sortAt" FROM repost r JOIN post p ON p.uri = r.subject
        ON CONFLICT DO NOTHING""",
    "an edited post keeps its quotes": """
        INSERT INTO quote (uri, cid, subject, "subjectCid", "createdAt", "indexedAt")
        SELECT q.uri, q.cid, e."embedUri", e."embedCid", q."createdAt", q."indexedAt"
        FROM post_embed_record e JOIN post q ON q.uri = e."postUri" JOIN post p ON p.uri = e."embedUri"
        ON CONFLICT DO NOTHING""",
    "a duplicate that has taken its place is noted as one no more": """
        DELETE FROM duplicate_record d WHERE d.uri IN (SELECT uri FROM "like" UNION ALL SELECT uri FROM repost)""",
    "a duplicate that takes the place of a deleted like or repost is what its subject's author hears of": """
        UPDATE notification n SET "recordUri" = t.uri, "recordCid" = t.cid, "sortAt" = t."sortAt"
        FROM (SELECT uri, cid, creator, subject, "sortAt", 'like' AS reason FROM "like"
              UNION ALL SELECT uri, cid, creator, subject, "sortAt", 'repost' FROM repost) t
        WHERE n.author = t.creator AND n."reasonSubject" = t.subject AND n.reason = t.reason
              AND NOT EXISTS (SELECT FROM record r WHERE r.uri = n."recordUri")""",
    "an edited like, repost or follow is told as it stands now": """
        UPDATE notification n SET did = t.did, "recordCid" = t.cid, "reasonSubject" = t.subject, "sortAt" = t."sortAt"
        FROM (SELECT uri, cid, split_part(subject, '/', 3) AS did, subject, "sortAt" FROM "like"
              UNION ALL SELECT uri, cid, split_part(subject, '/', 3), subject, "sortAt" FROM repost
              UNION ALL SELECT uri, cid, "subjectDid", NULL, "sortAt" FROM follow) t
        WHERE t.uri = n."recordUri" AND t.cid <> n."recordCid" """,
    "what is gone is not told: a verification and that it was taken back": """
        DELETE FROM notification n WHERE n.reason IN ('verified', 'unverified')
              AND NOT EXISTS (SELECT FROM verification v WHERE v.uri = n."recordUri")""",
    "what is gone is not told: that somebody joined by a starter pack, once the profile says so no more": """
        DELETE FROM notification n WHERE n.reason = 'starterpack-joined'
              AND NOT EXISTS (SELECT FROM profile p WHERE p.uri = n."recordUri" AND p."joinedViaStarterPackUri" = n."reasonSubject")""",
    "what is gone is not told: a reply to a post that is no more": """
        DELETE FROM notification n WHERE n.reason = 'reply'
              AND NOT EXISTS (SELECT FROM post p WHERE p.uri = n."reasonSubject")""",
    "a reply to a post that is no more has no valid root": """
        UPDATE post SET "invalidReplyRoot" = true, "violatesThreadGate" = coalesce("violatesThreadGate", false)
        WHERE "replyParent" IS NOT NULL AND "invalidReplyRoot" IS NOT TRUE
              AND NOT EXISTS (SELECT FROM post p WHERE p.uri = post."replyParent")""",
    "a deleted account leaves nothing: posts and reposts in feeds": """
        DELETE FROM feed_item WHERE "originatorDid" = ANY(%(gone)s) OR split_part("postUri", '/', 3) = ANY(%(gone)s)""",
    "a deleted account leaves nothing: quotes by it and of it": """
        DELETE FROM quote WHERE split_part(uri, '/', 3) = ANY(%(gone)s) OR split_part(subject, '/', 3) = ANY(%(gone)s)""",
    "a deleted account leaves nothing: its last commit": """
        DELETE FROM actor_sync WHERE did = ANY(%(gone)s)""",
    "a deleted account leaves nothing: what it counted for in posts": """
        UPDATE post_agg a SET "likeCount" = (SELECT count(*) FROM "like" l WHERE l.subject = a.uri),
               "repostCount" = (SELECT count(*) FROM repost r WHERE r.subject = a.uri),
               "replyCount" = (SELECT count(*) FROM post p WHERE p."replyParent" = a.uri AND p."violatesThreadGate" IS NOT TRUE),
               "quoteCount" = (SELECT count(*) FROM quote q WHERE q.subject = a.uri)""",
    "a deleted account leaves nothing: what it counted for in profiles": """
        UPDATE profile_agg a SET "followersCount" = (SELECT count(*) FROM follow f WHERE f."subjectDid" = a.did),
               "followsCount" = (SELECT count(*) FROM follow f WHERE f.creator = a.did),
               "postsCount" = (SELECT count(*) FROM post p WHERE p.creator = a.did)""",
    "a row that counts nothing is none": """
        DELETE FROM post_agg WHERE "likeCount" + "replyCount" + "repostCount" + "quoteCount" + "bookmarkCount" = 0""",
}


def reconcile(
    connection: psycopg.Connection[Any], gone: list[str], doubled: Sequence[Doubled], history: Written, fetched: str
) -> None:
    """Makes the accepted differences in the official indexer's tables, which `connection` looks into.

    `history`: what was written before the mirror started, at the time `fetched`.
    """
    values: dict[str, Any] = {"gone": gone, "doubled": json.dumps([asdict(edit) for edit in doubled])}
    values |= {name: [ref["uri"] for ref in getattr(history, name)] for name in ("early", "undone")}
    values["fetched"] = fetched
    for reason, statement in ACCEPTED.items():
        changed = connection.execute(statement.encode(), values).rowcount
        assert changed > 0, f"no longer a difference: {reason}"
