"""The data folder of `sluice up`, locked so that only one process uses it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control.process_status import FILE
from schemas.errors import OperatorError


@contextmanager
def locked_data_folder(folder: Path) -> Iterator[Path]:
    """Create and lock the folder. Raises OperatorError if it cannot be created or another `sluice up` uses it."""
    data_dir = folder.expanduser().absolute()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise OperatorError(f"SLUICE_DATA_DIR: {data_dir} cannot be used ({err.strerror}); choose another") from err
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(lock)
        raise OperatorError(f"SLUICE_DATA_DIR: `sluice up` already runs in {data_dir}; choose another") from err
    try:
        yield data_dir
    finally:
        (data_dir / FILE).unlink(missing_ok=True)
        os.close(lock)
