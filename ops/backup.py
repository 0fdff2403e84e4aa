"""`sluice backup FILE` and `sluice restore FILE`: the database as one file in pg_dump's custom format.

A dump is one snapshot, so the index's offsets in the log match the rows: a restored index continues from there. The tools must be of
the server's release or newer: first those beside the embedded server, then those on the PATH. A file gets its final name when it is
complete, and a restore is one transaction.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.postgres.connection import check_database, connect
from connectors.runtime.logs import without_secrets
from local.data_folder import locked_data_folder
from local.embedded.embedded_database import DATABASE, NO_SPACE, DatabaseUnavailable, EmbeddedDatabase, find_binaries
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("restore")
LOCK_SECONDS = 60  # how long pg_dump waits for a lock on a table
KILLED_SECONDS = 30.0
STALL_SECONDS = 1800.0  # a tool that neither writes nor uses the CPU for this long is killed
POLL_SECONDS = 0.2
VERSION_SECONDS = 10.0
ERROR_BYTES = 65_536
DRAFT = "sluice_restored"
NAME = "sluice backup"


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A backup that was written or restored. `server`: the release of PostgreSQL."""

    file: str
    bytes: int
    server: int
    seconds: float


def backup(settings: Settings, file: Path, *, replace: bool = False) -> BackupFile:
    """Write the database to `file`. Raises OperatorError."""
    began = time.monotonic()
    _one_database(settings)
    if file.exists() and not replace:
        raise OperatorError(f"{file} exists already; choose another name, or give --replace")
    check_database(settings)
    release = _release(settings.database)
    tool = find_tool("pg_dump", release)
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.touch(mode=0o600)
    except OSError as err:
        raise OperatorError(f"{file} cannot be written ({err.strerror}); choose another folder") from err
    try:
        arguments = ["--format=custom", f"--lock-wait-timeout={LOCK_SECONDS}s", f"--file={draft}"]
        _run(tool, arguments, settings.database, draft)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    return BackupFile(str(file), file.stat().st_size, release, round(time.monotonic() - began, 2))


def restore(settings: Settings, file: Path, *, replace: bool = False) -> BackupFile:
    """Restore `file` into the database of the settings, which must be empty, or into that of the data folder. Raises OperatorError.

    `replace`: the database of the data folder need not be empty; it is replaced when the new one is complete.
    """
    began = time.monotonic()
    _one_database(settings)
    _check_file(file)
    if settings.database:
        if replace:
            raise OperatorError(
                "--replace is only for the database of `sluice up`; for another server, create an empty database"
            )
        check_database(settings)
        release = _restore_into(settings.database, file)
    else:
        with _own_server(settings) as server:
            release = _restore_own(server, file, replace=replace)
    return BackupFile(str(file), file.stat().st_size, release, round(time.monotonic() - began, 2))


def _one_database(settings: Settings) -> None:
    if settings.shards:
        raise OperatorError(
            "SLUICE_SHARDS is set: back up and restore each database by itself, with SLUICE_DATABASE set to its URL and"
            " SLUICE_SHARDS unset"
        )


def find_tool(name: str, release: int) -> Path:
    """The oldest pg_dump or pg_restore of this release or newer. Raises OperatorError."""
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian keeps each release
    with suppress(DatabaseUnavailable):  # container images have no embedded server
        folders.insert(0, find_binaries())
    found: dict[int, Path] = {}
    for tool in (folder / name for folder in folders):
        if os.access(tool, os.X_OK) and (version := _version(tool)) is not None:
            found.setdefault(version, tool)
    suitable = [version for version in found if version >= release]
    if not suitable:
        installed = ", ".join(f"{version} at {path}" for version, path in sorted(found.items())) or "none"
        raise OperatorError(
            f"PostgreSQL {release} needs {name} {release} or newer; found: {installed};"
            f" install postgresql-client-{release}, or sluice[embedded]"
        )
    return found[min(suitable)]


def _version(tool: Path) -> int | None:
    try:
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", said.stdout)
    return int(found[1]) if found else None


def _release(database: str) -> int:
    with connect(database, NAME) as db:
        return db.info.server_version // 10000


def _check_file(file: Path) -> None:
    try:
        with file.open("rb") as begun:
            magic = begun.read(5)
    except OSError as err:
        raise OperatorError(f"{file}: {err.strerror}; give a file that `sluice backup` wrote") from err
    if magic != b"PGDMP":
        raise OperatorError(f"{file} is not a backup; give a file that `sluice backup` wrote")


@contextmanager
def _own_server(settings: Settings) -> Iterator[EmbeddedDatabase]:
    """The embedded server of the data folder. Raises OperatorError while a `sluice up` uses the folder."""
    with locked_data_folder(settings.data_dir) as data_dir:
        server = EmbeddedDatabase(data_dir / "database")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _restore_own(server: EmbeddedDatabase, file: Path, *, replace: bool) -> int:
    """Restore into a second database, which replaces the first one when it is complete."""
    with connect(server.url, NAME) as db:
        empty = db.execute(SQL["is_empty"]).fetchone() == (True,)
    if not empty and not replace:
        raise OperatorError(f"{server.data_dir} already has a mirror; give --replace, or another --data-dir")
    draft, kept = sql.Identifier(DRAFT), sql.Identifier(DATABASE)
    with connect(server.url_of("postgres"), NAME) as admin:
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(draft))
        admin.execute(sql.SQL("create database {}").format(draft))
        release = _restore_into(server.url_of(DRAFT), file)
        admin.execute(sql.SQL("drop database {} with (force)").format(kept))
        admin.execute(sql.SQL("alter database {} rename to {}").format(draft, kept))
    return release


def _restore_into(database: str, file: Path) -> int:
    with connect(database, NAME) as db:
        if db.execute(SQL["is_empty"]).fetchone() != (True,):
            raise OperatorError("SLUICE_DATABASE already has a mirror; restore into an empty database")
        release = db.info.server_version // 10000
        arguments = ["--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={_shown(database)}", str(file)]
        _run(find_tool("pg_restore", release), arguments, database, file)
        db.execute(SQL["mark"])
    return release


def _shown(database: str) -> str:
    """The connection string without the password, which other users of the machine could see."""
    return make_conninfo(
        "", **{name: value for name, value in conninfo_to_dict(database).items() if name != "password"}
    )


def _run(tool: Path, arguments: list[str], database: str, file: Path) -> None:
    """Run the tool to its end. Raises OperatorError."""
    password = str(conninfo_to_dict(database).get("password") or "")
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C"}
    if password:
        environment["PGPASSWORD"] = password
    own = [] if any(one.startswith("--dbname=") for one in arguments) else [f"--dbname={_shown(database)}"]
    child = subprocess.Popen(
        [tool, *own, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        output = _wait(child, file)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(KILLED_SECONDS)
    if child.returncode:
        if NO_SPACE in output:
            raise OperatorError(f"{file}: the disk of the file or of the database is full; make room there")
        lines = [line for line in output.splitlines() if "error:" in line or "ERROR:" in line] or output.splitlines()
        why = without_secrets(" ".join(lines[0].split())[:300]) if lines else f"it ended with {child.returncode}"
        raise OperatorError(f"{tool.name} failed ({why}); nothing was changed")


def _wait(child: "subprocess.Popen[bytes]", file: Path) -> str:
    """Wait for the end of the tool; its standard error. Kills it and raises OperatorError if it makes no progress."""
    assert child.stderr is not None  # noqa: S101 - for the type checker; PIPE was asked for
    os.set_blocking(child.stderr.fileno(), False)
    output, mark, moved_at = b"", (0.0, 0), time.monotonic()
    while True:
        ended = child.poll() is not None
        output = (output + (child.stderr.read() or b""))[-ERROR_BYTES:]
        if ended:
            return output.decode(errors="replace")
        now = (_cpu_ticks(child.pid), file.stat().st_size)
        if now != mark:
            mark, moved_at = now, time.monotonic()
        if time.monotonic() - moved_at > STALL_SECONDS:
            child.kill()
            child.wait(KILLED_SECONDS)
            raise OperatorError(
                f"the database made no progress for {STALL_SECONDS / 60:.0f} minutes; check it, then try again"
            )
        time.sleep(POLL_SECONDS)


def _cpu_ticks(pid: int) -> float:
    """CPU time of a process in clock ticks; 0 if it is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return float(fields[11]) + float(fields[12])
