"""PDS → firehose_backfill. The steps of one repo, and the module of each:

    1  read      task_feed.py a message of `repo_resync` or `repo_backfill` names the repo
    2  claim     source.py    one transaction claims its row; worker.py starts a pipeline for the claim
    3  resolve   pipeline.py  DID document → PDS and signing key
    4  fetch     pipeline.py  with a fetch slot of the PDS: download the CAR
    5  verify    task.py      in time slices (slices.py)
    6  emit      task.py      a `create` for every record, then the outcome (encode.py), as chunks of messages
    7  write     sink.py      chunks → log; then the outcome's offset → the claim's row
    8  end       pipeline.py  or, on failure, failures.py: retry, pause of the host, state of the account, last attempt

    repos ──▶ firehose_backfill

The dataflow carries chunks of messages and dead letters. Steps 1 to 4 and 8 are coroutines of one event loop, since they
wait for sockets. Steps 5 to 7 run in the flow's thread: they take CPU, and what they emit must reach the log in order.
Threads hand over in four places. Loop → flow: a bounded queue of downloads (slices.py). Flow → loop: the result of a task
(`_deliver` in pipeline.py). The loop uses helper threads for calls that block: the polls of two consumers (task_feed.py), and one
database transaction at a time (async_queue.py).
"""

import sys

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource
from bytewax.outputs import DynamicSink

from connectors.kafka.back_pressure import HighWater
from connectors.kafka.producer import Out
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.garbage import collect_rarely
from connectors.runtime.health import Health
from connectors.runtime.loop_environment import LoopEnvironment
from flows.backfill.sink import TOPIC, AttemptSink
from flows.backfill.source import BackfillSource
from flows.backfill.task import MessageChunk
from flows.backfill.task_feed import LogFeed
from schemas.settings import Settings

SWITCH_SECONDS = 0.0005  # how long the loop's thread waits for the GIL after every socket call, while the flow computes


def build(source: FixedPartitionedSource[MessageChunk | Out, None], sink: DynamicSink[MessageChunk | Out]) -> Dataflow:
    """The flow over any source and any sink of messages."""
    flow = Dataflow("backfill")
    repos = op.input("repos", flow, source)
    op.output(TOPIC, repos, sink)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The flow over the real log, database and network."""

    collect_rarely()
    sys.setswitchinterval(SWITCH_SECONDS)

    def repos() -> BackfillSource:
        pressure = HighWater(settings, TOPIC, "index")
        pressure.start()
        return BackfillSource(settings, health, LogFeed(settings), lambda: pressure.paused, LoopEnvironment())

    return build(CheckpointedSource(repos), AttemptSink(settings, health))
