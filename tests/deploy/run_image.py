"""Runs every process of a mounted image as a pod would, against an embedded log, database and simulated network.

    python -m tests.deploy.run_image ROOT IMAGE.json        (by deploy/image_acceptance.sh, as root)

Each runs as PID 1 of its own namespace, as the image's user, without capabilities, on a read-only root with an empty /tmp, and
with the memory limit of the manifests where a cgroup can be made for it. A line per check; exit code 1 when one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.support.simulated import simulated
from bench.support.stack import stack, until
from local.embedded.guarded_process import free_port
from schemas.flows import PROCESSES

MANIFESTS = Path(__file__).resolve().parents[2] / "deploy" / "k8s" / "base" / "processes"
CGROUP = Path("/sys/fs/cgroup/memory")
GROUP = "sluice-image-test-"
ENTER = """
set -e
{join}
mount --bind {root} {at}
mount -o remount,ro,bind {at}
mount -t tmpfs -o mode=1777,size=256m tmpfs {at}/tmp
mount -t proc proc {at}/proc
mount --bind /dev {at}/dev
exec chroot {at} setpriv --reuid={user} --regid={group} --clear-groups --bounding-set=-all --inh-caps=-all \\
  --no-new-privs -- {command}
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A mounted image and what it says of itself."""

    root: Path
    config: dict[str, Any]
    at: Path

    def start(
        self, *arguments: str, settings: dict[str, str] | None = None, group: Path | None = None, **streams: Any
    ) -> subprocess.Popen[str]:
        """The entry point with these arguments, as PID 1; `group`: the cgroup it belongs to."""
        user, _, its_group = self.config["User"].partition(":")
        assert user not in ("", "0", "root")
        words = [*self.config["Entrypoint"], *arguments]
        script = ENTER.format(
            join=f"echo 0 > {group}/cgroup.procs" if group else "",
            root=self.root,
            at=self.at,
            user=user,
            group=its_group,
            command=shlex.join(words),
        )
        environment = dict(line.partition("=")[::2] for line in self.config["Env"]) | (settings or {})
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
            env=environment,
            text=True,
            **streams,
        )

    def run(self, *arguments: str, settings: dict[str, str] | None = None) -> tuple[int, str]:
        """Exit code and output of a short command."""
        child = self.start(*arguments, settings=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = child.communicate(timeout=120)  # reads while it runs: an SBOM is longer than a pipe
        return child.returncode, said


class Checks:
    """What was looked at, a line each."""

    def __init__(self) -> None:
        self.failed = 0

    def that(self, what: str, holds: bool, said: object = "") -> None:
        """One check."""
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {what}{f' ({said})' if said != '' else ''}", flush=True)


def main() -> int:
    """All checks."""
    root, described = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text("utf-8"))
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="sluice-image-") as folder:
        image = Image(root, described["OCIv1"]["config"], Path(folder) / "root")
        image.at.mkdir()
        without_settings(image, checks)
        with (
            simulated(repos=150, records_per_repo=10, prebuild=True, writer_rate=10) as sim,
            stack(relays=sim.urls["relays"], labelers=sim.urls["labelers"], plc=sim.urls["plc"]) as running,
        ):
            given = {name: value for name, value in running.environment.items() if name.startswith("SLUICE_")}
            given.pop("SLUICE_CACHE_DIR", None)
            for arguments in (["migrate"], ["topics", "apply"], ["topics", "diff"], ["settings"]):
                code, said = image.run(*arguments, settings=given)
                checks.that(f"sluice {' '.join(arguments)}", code == 0, said[-200:] if code else "")
            mirror(image, checks, given, lambda: int(running.sql(IN_SYNC)[0][0]), Path(folder))
    print(f"{checks.failed} checks failed" if checks.failed else "all checks hold")
    return int(checks.failed > 0)


INSTALLED = """import json, re; from importlib.metadata import distributions
print(json.dumps([(re.sub(r"[-_.]+", "-", d.name).lower(), d.version) for d in distributions()]))"""
IN_SYNC = "select count(*) from sluice.repo where phase = 'sync'"


def without_settings(image: Image, checks: Checks) -> None:
    """Every process ends with 2 and one line that names the setting; the root takes no file."""
    code, said = image.run("--help")
    checks.that("sluice --help", code == 0 and "backfill" in said)
    _, said = image.run("--version")
    checks.that("protocol/ is compiled", "protocol/ compiled" in said, said.strip())
    for name in PROCESSES:
        code, said = image.run("run", name)
        checks.that(f"run {name} without settings", code == 2 and "SLUICE_KAFKA_BOOTSTRAP" in said, said.strip()[-160:])
    over_the_limit(image, checks)
    shell = Image(image.root, {**image.config, "Entrypoint": ["sh", "-c"]}, image.at)
    code, said = shell.run("touch /opt/sluice/x; touch ~/x && echo written; cat /proc/1/status")
    fields = dict(line.split(":", 1) for line in said.splitlines() if line.count(":") == 1)
    checks.that("the root is read-only", "Read-only file system" in said and "written" in said)
    checks.that("no capability is left", {fields[f"Cap{kind}"].strip("\t0") for kind in ("Eff", "Prm", "Bnd")} == {""})
    code, said = shell.run(f"cat /opt/sluice/sbom.cdx.json; echo; /opt/sluice/bin/python -c '{INSTALLED}'")
    sbom, installed = (json.loads(line) for line in (said.rpartition("}")[0] + "}", said.rpartition("}")[2]))
    named = {(component["name"], component["version"]) for component in sbom["components"]}
    missing = {tuple(one) for one in installed} - named - {("sluice", sbom["metadata"]["component"]["version"])}
    checks.that("the SBOM names every package", not missing, f"{len(named)} components, without {missing or 'none'}")
    checks.that("it runs as the image's user", fields["Uid"].split()[0] == image.config["User"].partition(":")[0])


def over_the_limit(image: Image, checks: Checks) -> None:
    """The limit of memory is one: whoever takes twice as much is killed. Where no cgroup can be made, that is said."""
    group, limit = memory_group("labels", checks), memory_of("labels")
    if group is not None:
        python = Image(image.root, {**image.config, "Entrypoint": ["python3", "-c"]}, image.at)
        child = python.start(f"bytearray({2 * limit} << 20).count(1)", group=group, stderr=subprocess.DEVNULL)
        code = child.wait(60)
        killed = (group / "memory.oom_control").read_text().split()
        checks.that(
            "memory beyond the limit is refused", code != 0 and killed[-1] != "0", f"code {code}, {killed[-1]} killed"
        )


def mirror(image: Image, checks: Checks, given: dict[str, str], in_sync: Any, folder: Path) -> None:
    """All processes side by side until most repos are in sync; then SIGTERM to each as PID 1."""
    running: dict[str, tuple[subprocess.Popen[str], int]] = {}
    try:
        for name in PROCESSES:
            port = free_port()
            own = {"SLUICE_HTTP_HOST": "127.0.0.1", "SLUICE_HTTP_PORT": str(port), "SLUICE_LOG_FORMAT": "json"}
            log = (folder / f"{name}.log").open("w")
            group = memory_group(name, checks)
            child = image.start("run", name, settings=given | own, group=group, stdout=log, stderr=log)
            running[name] = child, port
        for name, (child, port) in running.items():
            with contextlib.suppress(TimeoutError):
                until(lambda child=child, port=port: ready(port) or child.poll() is not None, 60)  # type: ignore[misc]
            checks.that(
                f"{name} is ready", ready(port), "" if ready(port) else (folder / f"{name}.log").read_text()[-500:]
            )
        with contextlib.suppress(TimeoutError):
            until(lambda: in_sync() > 130, 90)
        checks.that("repos are mirrored", in_sync() > 130, in_sync())
        for name in reversed(PROCESSES):
            stop(name, running[name][0], checks)
    finally:
        for child, _ in running.values():
            child.kill()  # --kill-child takes what runs inside along
            child.wait()
        for group in CGROUP.glob(f"{GROUP}*"):
            with contextlib.suppress(OSError):
                group.rmdir()


def stop(name: str, child: subprocess.Popen[str], checks: Checks) -> None:
    """SIGTERM to the process inside, which is PID 1 there."""
    if child.poll() is not None:
        checks.that(f"{name} drains on SIGTERM as PID 1", holds=False, said=f"it has ended with {child.returncode}")
        return
    inside = psutil.Process(child.pid).children()[0]
    status = Path(f"/proc/{inside.pid}/status").read_text()
    peak = next(int(line.split()[1]) // 1000 for line in status.splitlines() if line.startswith("VmHWM"))
    enforced = f"{GROUP}{name}" in Path(f"/proc/{inside.pid}/cgroup").read_text()
    first = next(line for line in status.splitlines() if line.startswith("NSpid")).split()[-1] == "1"
    begin = time.monotonic()
    os.kill(inside.pid, signal.SIGTERM)
    try:
        code: int | str = child.wait(60)
    except subprocess.TimeoutExpired:
        code = "none within 60 s"
    took = time.monotonic() - begin
    limit = memory_of(name)
    checks.that(f"{name} drains on SIGTERM as PID 1", code == 0 and first, f"code {code} in {took:.1f} s")
    checks.that(f"{name} keeps below its memory", peak < limit, f"peak {peak} MB of {limit}{', enforced' * enforced}")


def memory_group(name: str, checks: Checks) -> Path | None:
    """A cgroup with the memory limit of a process, or None where none can be made."""
    group = CGROUP / f"{GROUP}{name}"
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(memory_of(name) * 1024 * 1024))
    except OSError as err:
        checks.that(f"{name}: no memory limit can be set here, its peak is measured", holds=True, said=err.strerror)
        return None
    return group


def memory_of(name: str) -> int:
    """MiB that the manifests give a process."""
    manifest = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text("utf-8"))
    text: str = manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


def ready(port: int) -> bool:
    """What the readiness probe would say."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=4) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
