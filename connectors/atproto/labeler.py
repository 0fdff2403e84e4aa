"""Labelers: their label streams, from the first label on."""

from connectors.atproto.deferred_events import DeferralStatus
from connectors.atproto.stream import StreamPartition
from connectors.atproto.stream_sockets import Frame
from connectors.kafka.back_pressure import HighWater
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.health import Health
from schemas.settings import Settings
from schemas.topics import LABEL_LIVE
from steps.cursor import Cursors

SUBSCRIBE = "com.atproto.label.subscribeLabels"


def label_source(
    settings: Settings, health: Health, cursors: Cursors, deferral: DeferralStatus
) -> CheckpointedSource[Frame]:
    """Frames of all labelers of the settings. A labeler without a cursor is read from seq 0, its whole history."""
    return CheckpointedSource(
        lambda: StreamPartition(
            settings,
            health,
            cursors,
            method=SUBSCRIBE,
            upstreams=settings.labelers,
            start=0,
            pressure=HighWater(settings, LABEL_LIVE, "index"),
            fillable=False,
            deferral=deferral,
        )
    )
