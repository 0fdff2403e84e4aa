"""Which processes of `sluice up` an operator has stopped: `StopRequests`.

`sluice stop` writes an empty file for each process into the folder `stopped` of the data folder, and `sluice start` removes it.
`sluice up` reads the folder with each tick, and empties it when it starts. Creating and removing a file are atomic, so commands need
no lock, and a request is not lost while `up` is busy.
"""

import time
from pathlib import Path

from control.process_status import Registry, running_mirror
from schemas.errors import OperatorError
from schemas.flows import process_name

FOLDER = "stopped"
CHANGE_SECONDS = 90.0  # more than a process has to drain before it is killed
POLL_SECONDS = 0.1


class StopRequests:
    """The names (`index-1`) of the processes that must not run."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER

    def names(self) -> frozenset[str]:
        """All of them."""
        try:
            return frozenset(path.name for path in self._folder.iterdir())
        except OSError:
            return frozenset()

    def set(self, name: str, *, stopped: bool) -> None:
        """Stop or start a process. Raises OSError."""
        self._folder.mkdir(exist_ok=True)
        if stopped:
            (self._folder / name).touch()
        else:
            (self._folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Let all processes run. Raises OSError."""
        for name in self.names():
            self.set(name, stopped=False)


def stop_or_start(data_dir: Path, flow: str, *, stopped: bool) -> list[str]:
    """Have the `sluice up` of a data folder stop or start the processes of a flow; wait until it has. Returns their names.

    `flow`: a flow (`index`) or one of its processes (`index-2`). Raises OperatorError.
    """
    folder, running = _running(data_dir)
    names = [name for name in running.flows if process_name(flow) in (name, _kind(name))]
    if not names:
        known = dict.fromkeys(text for name in running.flows for text in (_kind(name), name))
        raise OperatorError(f"no process {flow[:100]!r} runs here; choose one of {', '.join(known)}")
    try:
        for name in names:
            StopRequests(folder).set(name, stopped=stopped)
    except OSError as err:
        raise OperatorError(f"{folder / FOLDER} cannot be written ({err.strerror}); run this as its owner") from err
    deadline = time.monotonic() + CHANGE_SECONDS
    while not _done(_running(data_dir)[1], names, stopped=stopped):
        if time.monotonic() > deadline:
            what = f"{'stop' if stopped else 'start'} within {CHANGE_SECONDS:.0f} s"
            raise OperatorError(f"{' '.join(names)} did not {what}; see the log in {folder / 'logs'}")
        time.sleep(POLL_SECONDS)
    return names


def _running(data_dir: Path) -> tuple[Path, Registry]:
    found = running_mirror(data_dir)
    if found is None:
        raise OperatorError(f"no `sluice up` runs in {data_dir}; start it, or give the --data-dir of the one that runs")
    return found


def _done(running: Registry, names: list[str], *, stopped: bool) -> bool:
    processes = [process for process in running.processes if process.name in names]
    return len(processes) == len(names) and all((process.pid == 0) == stopped for process in processes)


def _kind(name: str) -> str:
    """`index-2` → `index`."""
    return name.rstrip("0123456789").removesuffix("-")
