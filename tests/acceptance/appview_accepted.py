"""Where our tables say something else than the official indexer's, on purpose; docs/appview.md lists the same.

Each is a statement that makes the official indexer's tables say what ours do, so that all other rows, and all answers, can be
compared as they are. A statement that changes nothing is no difference, and fails.
"""

from __future__ import annotations

from typing import Any

import psycopg

# %(gone)s: DIDs of accounts that were deleted
ACCEPTED = {
    "a duplicate that has taken its place is noted as one no more": """
        DELETE FROM duplicate_record d WHERE d.uri IN (SELECT uri FROM "like" UNION ALL SELECT uri FROM repost)""",
    "a duplicate that takes the place of a deleted like or repost is what its subject's author hears of": """
        UPDATE notification n SET "recordUri" = t.uri, "recordCid" = t.cid, "sortAt" = t."sortAt"
        FROM (SELECT uri, cid, creator, subject, "sortAt", 'like' AS reason FROM "like"
              UNION ALL SELECT uri, cid, creator, subject, "sortAt", 'repost' FROM repost) t
        WHERE n.author = t.creator AND n."reasonSubject" = t.subject AND n.reason = t.reason
              AND NOT EXISTS (SELECT FROM record r WHERE r.uri = n."recordUri")""",
    "an edited like is told as it stands now": """
        UPDATE notification n SET did = split_part(l.subject, '/', 3), "recordCid" = l.cid, "reasonSubject" = l.subject,
               "sortAt" = l."sortAt"
        FROM "like" l WHERE l.uri = n."recordUri" AND l.cid <> n."recordCid" """,
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
    "a post without thread gate says so in one way, whether it ever had one or not": """
        UPDATE post SET "hasThreadGate" = NULL WHERE NOT "hasThreadGate" """,
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
}


def reconcile(connection: psycopg.Connection[Any], gone: list[str]) -> None:
    """Makes the accepted differences in the official indexer's tables, which `connection` looks into."""
    for reason, statement in ACCEPTED.items():
        changed = connection.execute(statement.encode(), {"gone": gone}).rowcount
        assert changed > 0, f"no longer a difference: {reason}"
