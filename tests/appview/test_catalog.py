"""Our schema `bsky` is the one that the official AppView's own migrations make, but for what is listed here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg import Rollback

from tests.appview.catalog import catalog, differences
from tests.support.official.appview_servers import VERSIONS, bsky

pytestmark = pytest.mark.timeout(900)  # the first to come installs the packages

OF_THEIR_MIGRATOR = "the server never reads them, and their migrator must not run over ours"
LEFT_OVER = "from the time when moderation lived here; no code reads or writes it"
NEVER_READ = "no code reads it"
ONE_COPY = "over the one copy that Sluice has, with the same columns"
OUR_LOOKUP = "replies, quotes and reposts of a post that comes late or goes"
ACCEPTED = {
    "- table kysely_migration": OF_THEIR_MIGRATOR,
    "- table kysely_migration_lock": OF_THEIR_MIGRATOR,
    "- table moderation_action": LEFT_OVER,
    "- table moderation_action_subject_blob": LEFT_OVER,
    "- table moderation_event": LEFT_OVER,
    "- table moderation_report": LEFT_OVER,
    "- table moderation_report_resolution": LEFT_OVER,
    "- table moderation_subject_status": LEFT_OVER,
    "- table algo_whats_hot_view": NEVER_READ,
    "- table view_param": NEVER_READ,
    "- table did_cache": NEVER_READ,
    "- table subscription": NEVER_READ,
    "actor_sync: is v, not r": ONE_COPY,
    "record: is v, not r": ONE_COPY,
    "label: is v, not r": ONE_COPY,
    "actor_state: + lastSeenPriorityNotifs character varying": "0.0.221 writes it, and 0.0.280 has dropped it",
    'post: + post_reply_root_idx: CREATE INDEX post_reply_root_idx ON post USING btree ("replyRoot")'
    ' WHERE ("replyRoot" IS NOT NULL)': OUR_LOOKUP,
    "post_embed_record: + post_embed_record_embed_idx: CREATE INDEX post_embed_record_embed_idx ON post_embed_record"
    ' USING btree ("embedUri")': OUR_LOOKUP,
}


def test_the_schema_is_that_of_the_newest_version(database: str, official_tables: Callable[[str], str]) -> None:
    """N10: tables, columns, types, defaults, keys and indexes; each difference has a reason."""
    with bsky(official_tables(VERSIONS[-1])) as theirs, bsky(database) as ours:
        ours.execute("SELECT sluice.appview_prepare()")  # as SLUICE_APPVIEW does
        found = differences(catalog(theirs), catalog(ours))
    assert found == set(ACCEPTED), "\n".join(sorted(found ^ set(ACCEPTED)))


def test_the_older_version_needs_no_other_tables(database: str, official_tables: Callable[[str], str]) -> None:
    """N10: every table and column of the older version is there with its type."""
    with bsky(official_tables(VERSIONS[0])) as theirs, bsky(database) as ours:
        wanted, has = catalog(theirs), catalog(ours)
    lacking = {table: columns - has.columns.get(table, set()) for table, columns in wanted.columns.items()}
    assert {table for table, columns in lacking.items() if columns} == {
        table.removeprefix("- table ") for table in ACCEPTED if table.startswith("- table ")
    }


def test_the_comparison_sees_what_differs(official_tables: Callable[[str], str]) -> None:
    """Each kind of difference, made on purpose and undone."""
    with bsky(official_tables(VERSIONS[-1])) as connection:
        reference = catalog(connection)
        assert len(reference.kinds) > 50
        for statement, difference in MADE_ON_PURPOSE.items():
            with connection.transaction():
                connection.execute(statement)
                assert difference in differences(reference, catalog(connection))
                raise Rollback
        assert differences(reference, catalog(connection)) == set()


MADE_ON_PURPOSE = {
    'ALTER TABLE "like" DROP COLUMN "viaCid"': "like: - viaCid character varying",
    'ALTER TABLE "like" ALTER COLUMN "viaCid" TYPE text': "like: + viaCid text",
    'ALTER TABLE "like" ALTER COLUMN via SET NOT NULL': "like: + via NOT NULL",
    'ALTER TABLE post_agg ALTER COLUMN "likeCount" SET DEFAULT 1': "post_agg: + likeCount default 1",
    "DROP INDEX record_did_idx": "record: - record_did_idx: CREATE INDEX record_did_idx ON record USING btree (did)",
    "ALTER TABLE follow DROP CONSTRAINT follow_unique_subject": (
        'follow: - follow_unique_subject: UNIQUE (creator, "subjectDid")'
    ),
    "DROP TABLE quote": "- table quote",
    "ALTER TABLE label RENAME TO filled; CREATE VIEW label AS SELECT * FROM filled": "label: is v, not r",
}
