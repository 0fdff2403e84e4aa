"""firehose_backfill, firehose_live, label_live → PostgreSQL: poll, decode, apply (docs/design.md).

One poll is one batch, and one batch is one transaction. `apply` locks the repos, lets the gate decide each event in log order,
writes records, buffered events, repos, labels and offsets, updates the projection, and commits.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.kafka.log import Part, cluster_id
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.health import Health
from flows.index.apply import rules_of
from flows.index.decode import Batch, Decoded, decode
from flows.index.projection import Projection
from flows.index.sink import IndexSink
from flows.index.source import IndexPartition
from flows.index.store import index_stores
from schemas.settings import Settings


def build(log: Source[Batch], tables: Sink[Decoded], prefix: str = "") -> Dataflow:
    """poll → decode → apply. `apply` is the output: its decisions and its writes are one transaction."""
    flow = Dataflow("index")
    batches = op.input("poll", flow, log)
    events = op.map("decode", batches, lambda batch: decode(batch, prefix))
    op.output("apply", events, tables)
    return flow


def flow(settings: Settings, health: Health, projection: Projection) -> Dataflow:
    """The flow with its real connectors and its plug-in. Raises OperatorError."""
    projection.prepare()
    stores = index_stores(settings, cluster_id(settings), projection)
    unread: dict[Part, int] = {}
    down: set[int] = set()
    source = CheckpointedSource(
        lambda: IndexPartition(settings, health, stores, unread, down=down, maintenance=projection.maintenance())
    )
    sink = IndexSink(settings, stores, rules_of(settings), unread, down=down, health=health)
    return build(source, sink, settings.kafka_topic_prefix)
