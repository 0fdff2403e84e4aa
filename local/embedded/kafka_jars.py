"""The class path of the embedded log: a folder of jars, fetched once with the Java and Maven of this machine.

`embedded_log.pom.xml` names the jars. They are stored in `<cache>/kafka-<version>/libs`, where `<cache>` is $SLUICE_CACHE_DIR or the
project's `.sluice`. A fetch is atomic and protected by a file lock, so several starts at the same time fetch them once.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from schemas.errors import OperatorError

POM = Path(__file__).with_name("embedded_log.pom.xml")
NAMESPACE = {"m": "http://maven.apache.org/POM/4.0.0"}
MINIMUM_JAVA = 17
FETCH_SECONDS = 600
SAY_SECONDS = 2.0
ALL_MEGABYTES = 45
DOWNLOADED = re.compile(r"Downloaded from .* \(([\d.]+) (B|kB|MB) at")  # a line of Maven's
UNITS = {"B": 1e-6, "kB": 1e-3, "MB": 1.0}
REMEDY = (
    "install a Java 17+ runtime and Maven, or give a broker with --bootstrap HOST:PORT, "
    "or run `docker compose -f redpanda.yml up`"
)


class EmbeddedLogUnavailable(OperatorError):
    """The embedded log cannot run; the message names the reason and a remedy."""

    def __init__(self, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(f"no embedded log: {reason}; {remedy}")


def kafka_version() -> str:
    """The version of Kafka that the pom pins."""
    pom = ElementTree.parse(POM)  # noqa: S314 - our own file
    for dependency in pom.iterfind(".//m:dependency", NAMESPACE):
        if dependency.findtext("m:groupId", "", NAMESPACE) == "org.apache.kafka":
            return dependency.findtext("m:version", "", NAMESPACE)
    raise AssertionError(f"{POM} pins no Kafka")


def find_java() -> str:
    """Path of a Java 17+ launcher: $JAVA_HOME's, else the PATH's. Raises EmbeddedLogUnavailable."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else None
    java = java or shutil.which("java")
    if java is None:
        raise EmbeddedLogUnavailable("there is no `java` on the PATH")
    found = re.search(r'version "(?:1\.)?(\d+)', java_version(java))
    if found is None:
        raise EmbeddedLogUnavailable(f"{java} does not print its version")
    if int(found[1]) < MINIMUM_JAVA:
        raise EmbeddedLogUnavailable(f"{java} is Java {found[1]}, and the log needs {MINIMUM_JAVA} or newer")
    return java


@cache
def java_version(java: str) -> str:
    """What `java -version` prints. Raises EmbeddedLogUnavailable."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise EmbeddedLogUnavailable(f"{java} does not run ({err})") from err
    return answer.stderr + answer.stdout


def cache_folder() -> Path:
    """$SLUICE_CACHE_DIR, else `.sluice` of the checkout this file is in, else of the working directory."""
    configured = os.environ.get("SLUICE_CACHE_DIR")
    if configured:
        return Path(configured).expanduser().absolute()
    checkout = Path(__file__).resolve().parent.parent.parent
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / ".sluice"


def check_present(folder: Path | None = None) -> None:
    """Raise EmbeddedLogUnavailable if Java is missing, or if Maven is missing and the jars are not fetched yet."""
    find_java()
    home = folder or cache_folder() / f"kafka-{kafka_version()}"
    if not home.is_dir() and shutil.which("mvn") is None:
        raise EmbeddedLogUnavailable("there is no `mvn` on the PATH to fetch Apache Kafka with")


def fetch_jars(folder: Path | None = None, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The jars in a stable order, fetched with Maven if `folder` (default: in the cache) does not hold them yet.

    The first fetch downloads some 45 MB, and says how far it is. Raises EmbeddedLogUnavailable if it fails.
    """
    home = folder or cache_folder() / f"kafka-{kafka_version()}"
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with (home.parent / f".{home.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.is_dir():
                _fetch(home, say)
    except OSError as err:
        raise EmbeddedLogUnavailable(f"the folder for its jars cannot be used ({err})") from err
    jars = sorted((home / "libs").glob("*.jar"))
    if not jars:
        raise EmbeddedLogUnavailable(f"{home / 'libs'} holds no jars; remove {home} to fetch them again")
    return jars


def _fetch(home: Path, say: Callable[[str], None]) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise EmbeddedLogUnavailable("there is no `mvn` on the PATH to fetch Apache Kafka with")
    draft = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        # a copy of its own: Maven writes beside the pom, and an installed package may be read-only
        shutil.copy(POM, draft / "pom.xml")
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={draft / 'libs'}", "-DincludeScope=runtime"]
        _run_maven([maven, "-B", "-f", str(draft / "pom.xml"), *goal], say)
        draft.chmod(0o755)
        draft.replace(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run_maven(command: list[str], say: Callable[[str], None]) -> None:
    """Run it, and say what it has downloaded, at most every SAY_SECONDS. Raises EmbeddedLogUnavailable."""
    began = said_at = time.monotonic()
    say("fetching Apache Kafka with Maven …")
    megabytes, last = 0.0, ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    limit = threading.Timer(FETCH_SECONDS, process.kill)
    limit.start()
    with process:
        for line in process.stdout or ():
            if not last.startswith("[ERROR]"):  # the first error is the cause
                last = line
            if done := DOWNLOADED.search(line):
                megabytes += float(done[1]) * UNITS[done[2]]
            if megabytes and time.monotonic() - said_at > SAY_SECONDS:
                said_at = time.monotonic()
                say(f"fetching Apache Kafka: {megabytes:.0f} of about {ALL_MEGABYTES} MB")
    limit.cancel()
    if time.monotonic() - began > FETCH_SECONDS:
        raise EmbeddedLogUnavailable(f"Maven did not fetch Apache Kafka within {FETCH_SECONDS} s")
    if process.returncode != 0:
        reason = last.removeprefix("[ERROR]").strip()[-300:]
        raise EmbeddedLogUnavailable(f"Maven could not fetch Apache Kafka ({reason})")
    say(f"fetched Apache Kafka in {time.monotonic() - began:.0f} s, {megabytes:.0f} MB downloaded")
