"""Relays: the firehose stream, and pages of listHosts and listRepos."""

from connectors.back_pressure import HighWater
from connectors.checkpointed import CheckpointedSource
from connectors.process import Health
from connectors.stream import Frame, StreamPartition
from schemas.settings import Settings
from steps.cursor import Cursors

SUBSCRIBE = "com.atproto.sync.subscribeRepos"


def firehose_source(settings: Settings, health: Health, cursors: Cursors) -> CheckpointedSource[Frame]:
    """Frames of all relays of the settings. Waits while the index is half of the live topic's retention behind."""
    return CheckpointedSource(
        lambda: StreamPartition(
            settings,
            health,
            cursors,
            method=SUBSCRIBE,
            upstreams=settings.relays,
            start=0 if settings.firehose_start == "oldest" else None,
            pressure=HighWater(settings, "firehose_live", "index"),
            fillable=True,
        )
    )
