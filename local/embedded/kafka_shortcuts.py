"""Two shortcuts that take half of a broker's start away: `format_storage` without a JVM, and `ClassArchive`, its classes loaded already.

Both are files that Kafka's own tools made once (`kept_files`), beside the jars. Without them a start takes the long way, and makes them.
"""

import os
import secrets
import shutil
import time
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from local.embedded.kafka_jars import java_version
from local.embedded.kept_files import keep, kept, writable

CHECKPOINT = "bootstrap.checkpoint"
META = "meta.properties"
STALE_SECONDS = 3600.0


def format_storage(home: Path, data: Path, tool: Callable[[str], None]) -> None:
    """Prepare the empty folder `data` for a new cluster; `meta.properties` is written last.

    `tool(cluster)` does it with Kafka's storage tool. The features that a cluster begins with are its result of the first time, which
    is the same for every cluster of this version; what differs are two random ids.
    """
    cluster, found = new_id(), kept(home, CHECKPOINT)
    if found is None:
        tool(cluster)
        if writable(home):
            draft = home / f".{CHECKPOINT}-{secrets.token_hex(4)}"
            with suppress(OSError):
                shutil.copyfile(data / CHECKPOINT, draft)
                keep(draft, home, CHECKPOINT)
        return
    data.mkdir(exist_ok=True)
    shutil.copyfile(found, data / CHECKPOINT)
    draft = data / f"{META}.tmp"
    draft.write_text(f"version=1\nnode.id=1\ndirectory.id={new_id()}\ncluster.id={cluster}\n")
    draft.replace(data / META)


def new_id() -> str:
    """A random id in Kafka's spelling of a UUID: offsets of one log are invalid in another. It does not begin with `-`."""
    return urlsafe_b64encode(b"s" + os.urandom(15)).decode().rstrip("=")


class ClassArchive:
    """The JVM's archive of the broker's loaded classes (AppCDS): 50 MB, half of the CPU seconds of a start.

    A broker that finds none writes one when it is stopped cleanly; `collect` keeps it. That broker costs more CPU than usual, so
    others that start meanwhile write none. Each Java and set of options has its own.
    """

    def __init__(self, home: Path, java: str, options: list[str]) -> None:
        self._home = home
        self._name = f"classes-{zlib.crc32((java_version(java) + ' '.join(options)).encode()):08x}.jsa"
        self._draft: Path | None = None

    def options(self) -> list[str]:
        """The JVM's options to use the archive, or to write it at the end; none if another broker writes it."""
        self._draft = None
        found = kept(self._home, self._name)
        if found is not None:
            return [f"-XX:SharedArchiveFile={found}"]
        if not writable(self._home):
            return []
        for stale in self._home.glob(".classes-*"):
            with suppress(OSError):
                if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                    stale.unlink()
        draft = self._home / f".{self._name}-draft"
        try:
            draft.touch(exist_ok=False)
        except OSError:
            return []  # another broker writes it
        self._draft = draft
        return [f"-XX:ArchiveClassesAtExit={self._draft}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]

    @property
    def writes(self) -> bool:
        """Whether the broker with these options writes an archive at its end."""
        return self._draft is not None

    def collect(self, *, ended_cleanly: bool) -> None:
        """After the broker's end: keep what it wrote. One that was killed may have written a part of it."""
        if self._draft is not None and self._draft.exists():
            if ended_cleanly and self._draft.stat().st_size:
                keep(self._draft, self._home, self._name)
            self._draft.unlink(missing_ok=True)
        self._draft = None
