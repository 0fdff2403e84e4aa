"""Back-pressure by high-water marks: a producer waits while its consumers are too far behind (B7).

`HighWater(settings, topic, group)` looks at the group's committed offsets every few seconds, from a thread of its own.
`.paused` is None, or the reason with its figures. It never drops anything: the source stops taking from its bounded queue,
and so, in the end, from its socket. Between the mark and three quarters of it the answer stays as it was.

Work topics pause at `high_water_messages` of lag. The live topic pauses when its oldest unsettled message has used half of
the topic's retention, and not before: a pause of the live stream spends the relay's window, which is shorter.
"""

import threading
import time
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from connectors.kafka import client as broker
from connectors.kafka.log import admin, answers
from connectors.runtime import watchdog
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE

CHECK_SECONDS = 2.0
RESUME_SHARE = 0.75
REQUEST_SECONDS = 10.0
LIVE_TOPIC = FIREHOSE_LIVE


@dataclass(frozen=True, slots=True)
class GroupLag:
    """Lag of a group in messages, and whether any of them is older than the two ages given."""

    lag: int
    older_than_mark: bool
    older_than_resume: bool


class HighWater:
    """The mark between one topic and the group that reads it. `start` it once; it ends with the process or `stop`."""

    def __init__(self, settings: Settings, topic: str, group: str, *, check_seconds: float = CHECK_SECONDS) -> None:
        self._settings = settings
        self._topic = settings.topic(topic)
        self._group = settings.group(group)
        self._by_age = topic == LIVE_TOPIC
        self._check_seconds = check_seconds
        self._paused: str | None = None
        self._error: BaseException | None = None
        self._reader: Consumer | None = None  # never subscribed, so never a member of the group
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"high-water-{topic}", daemon=True)

    def start(self) -> None:
        """Start looking. `paused` is None until the first look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()

    @property
    def paused(self) -> str | None:
        """Why the producer has to wait, or None. Raises what killed the thread (B8)."""
        if self._error is not None:
            raise RuntimeError(f"the watch over {self._topic} died") from self._error
        return self._paused

    def _run(self) -> None:
        client: AdminClient | None = None
        retention = 0.0
        try:
            with watchdog.watched(self._thread.name):
                while not self._stop.is_set():
                    client = client or admin(self._settings)
                    try:
                        retention = retention or self._retention_seconds(client)
                        self._look(client, retention)
                    except KafkaException:
                        # the last answer holds, and the producer itself finds out if the broker is gone; an old client
                        # may fail for ever while the broker is there
                        client = None
                        self._close_reader()
                    watchdog.rest(self._stop, self._check_seconds)
        except BaseException as err:  # shown to the flow by `paused`
            self._error = err
        finally:
            self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            broker.close(self._reader)
            self._reader = None

    def _look(self, client: AdminClient, retention: float) -> None:
        was_paused = self._paused is not None
        if self._by_age:
            mark = retention * self._settings.tuning.live_high_water_fraction
            standing = self._group_lag(client, mark)
            over = standing.older_than_resume if was_paused else standing.older_than_mark
            why = f"{self._group} has {standing.lag:,} messages of {self._topic} to settle, the oldest over {_span(mark)} old"
        else:
            high = self._settings.kafka_high_water_messages
            standing = self._group_lag(client, None)
            over = standing.lag > (high * RESUME_SHARE if was_paused else high)
            why = f"{self._group} is {standing.lag:,} messages behind on {self._topic}, the mark is {high:,}"
        self._paused = why if over else None

    def _group_lag(self, client: AdminClient, mark_seconds: float | None) -> GroupLag:
        parts = self._partitions(client)
        ends = self._offsets(client, parts, OffsetSpec.latest())
        starts = self._offsets(client, parts, OffsetSpec.earliest())
        committed = self._committed(parts)
        at = {part: max(committed.get(part, 0), starts[part]) for part in ends}
        lag = sum(max(0, end - at[part]) for part, end in ends.items())
        if mark_seconds is None or lag == 0:
            return GroupLag(lag, older_than_mark=False, older_than_resume=False)

        def older(seconds: float) -> bool:
            moment = int((time.time() - seconds) * 1000)
            # the first message that is younger: whatever is unsettled before it is older (-1: all are)
            young = self._offsets(client, parts, OffsetSpec.for_timestamp(moment))
            return any(at[part] < (ends[part] if first < 0 else first) for part, first in young.items())

        return GroupLag(lag, older(mark_seconds), older(mark_seconds * RESUME_SHARE))

    def _partitions(self, client: AdminClient) -> list[int]:
        watchdog.mark()
        described = client.list_topics(self._topic, timeout=REQUEST_SECONDS).topics[self._topic]
        if described.error is not None:
            raise KafkaException(described.error)
        return sorted(described.partitions)

    def _committed(self, parts: list[int]) -> dict[int, int]:
        # not the admin client's list_consumer_group_offsets: while a coordinator loads, its refresh dereferences the
        # consumer group that an admin client does not have (librdkafka 2.16: rd_kafka_handle_OffsetFetch), and crashes
        if self._reader is None:
            own = {"group.id": self._group, "enable.auto.commit": False, "log_level": 0}
            self._reader = Consumer(broker.options(self._settings, "high-water") | own)
        asked = [TopicPartition(self._topic, part) for part in parts]
        answer = self._reader.committed(asked, timeout=REQUEST_SECONDS)
        return {found.partition: found.offset for found in answer if found.offset >= 0}

    def _retention_seconds(self, client: AdminClient) -> float:
        resource = ConfigResource(ResourceType.TOPIC, self._topic)
        (described,) = answers(client.describe_configs([resource], request_timeout=REQUEST_SECONDS)).values()
        millis = int(described["retention.ms"].value)
        return millis / 1000 if millis > 0 else float("inf")

    def _offsets(self, client: AdminClient, parts: list[int], spec: OffsetSpec) -> dict[int, int]:
        wanted = {TopicPartition(self._topic, part): spec for part in parts}
        futures = client.list_offsets(wanted, request_timeout=REQUEST_SECONDS)
        return {place.partition: found.offset for place, found in answers(futures).items()}


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
