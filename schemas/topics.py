"""Names of the topics, as `schemas/topics.yml` declares them, and the size of their messages."""

from typing import Final

REPO_BACKFILL: Final = "repo_backfill"
REPO_RESYNC: Final = "repo_resync"
FIREHOSE_LIVE: Final = "firehose_live"
FIREHOSE_BACKFILL: Final = "firehose_backfill"
LABEL_LIVE: Final = "label_live"
DEAD_LETTER: Final = "dead_letter"
FIREHOSE_SEQUENCE: Final = "firehose_sequence"

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""`max.message.bytes` of every topic and client."""
MAX_VALUE_BYTES = MAX_MESSAGE_BYTES - 8192
"""Maximum size of a value; the rest is for headers, key and batch."""
