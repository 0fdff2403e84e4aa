"""What every process does first: `prepare(settings)` applies migrations and topics."""

from connectors.kafka import topics
from connectors.kafka.log import cluster_id
from connectors.postgres.connection import check_database
from connectors.postgres.migrate import migrate
from connectors.postgres.shard_identity import prepare_shards
from schemas.settings import Settings

BROKER_SECONDS = 10.0


def prepare(settings: Settings) -> list[str]:
    """Apply migrations and topics. Every process does this; the first one does the work. Returns the applied migrations."""
    check_database(settings)
    applied = [*migrate(settings.database), *prepare_shards(settings)]
    cluster_id(settings, BROKER_SECONDS)
    topics.apply(settings)
    return applied
