"""firehose_backfill, firehose_live, label_live → PostgreSQL: decode, gate, write (design §5.4).

One poll is one batch is one transaction: the repos' rows are locked, every event is decided by the gate in log order, the
rows, held events, repos, labels and the stream's offsets are written, and all of it is committed at once.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from appview import state as appview_state
from connectors.kafka.log import Part, cluster_id
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.process import Health
from flows.index.source import Batch, Decoded, IndexPartition, IndexSink, decode, rules_of
from flows.index.store import Tables
from schemas.settings import Settings


def build(log: Source[Batch], tables: Sink[Decoded], prefix: str = "") -> Dataflow:
    """The picture: log → decode → gate and write, in one transaction."""
    flow = Dataflow("index")
    batches = op.input("log", flow, log)
    events = op.map("decode", batches, lambda batch: decode(batch, prefix))
    op.output("gate_and_write", events, tables)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The flow with its real connectors. Raises AppviewUnavailable."""
    appview_state.begin(settings)
    tables = Tables(settings, cluster_id(settings))
    unread: dict[Part, int] = {}
    source = CheckpointedSource(lambda: IndexPartition(settings, health, tables, unread))
    return build(source, IndexSink(settings, tables, rules_of(settings), unread, health), settings.topic_prefix)
