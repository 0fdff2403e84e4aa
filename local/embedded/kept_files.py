"""Files that make later starts cheaper, kept in a cache folder: `keep` stores one, `kept` finds it.

The name carries a checksum, because a JVM crashes on a damaged archive: a file that is damaged is deleted, and made again by its user.
A folder that is read-only keeps nothing, and everything works without.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path

CHUNK_BYTES = 1 << 20


def kept(folder: Path, name: str) -> Path | None:
    """The file of this name, undamaged; None if there is none."""
    for path in folder.glob(f"{name}.[0-9a-f]*"):
        with suppress(OSError):
            if path.suffix == f".{_checksum(path)}":
                return path
            path.unlink()
    return None


def keep(draft: Path, folder: Path, name: str) -> None:
    """Move a finished file of the same file system into the folder. Readers see all of it or nothing."""
    with suppress(OSError):
        path = folder / f"{name}.{_checksum(draft)}"
        draft.replace(path)
        for other in folder.glob(f"{name}.[0-9a-f]*"):
            if other != path:
                other.unlink(missing_ok=True)


def writable(folder: Path) -> bool:
    """Whether files can be kept there."""
    return os.access(folder, os.W_OK)


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
