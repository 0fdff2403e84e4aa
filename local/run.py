"""One process, as in a pod: `run("firehose", settings)` prepares database and topics, serves the health page, and runs the flow.

Problems that an operator can correct are OperatorError or similar (one line, exit 2). Any other error ends the process with its
traceback, and its supervisor restarts it.
"""

import ctypes
import logging
import os
import signal
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from bytewax.errors import BytewaxRuntimeError
from bytewax.run import cli_main

from connectors.kafka import client as broker
from connectors.runtime.garbage import collect_rarely
from connectors.runtime.health import Health, serve_health, watch_disk
from connectors.runtime.logs import hide, log_to_stderr
from connectors.runtime.stop import STOP, Stopping, stop_on_signals
from connectors.runtime.watchdog import Signals, Watchdog
from control import control_process
from local.dataflows import dataflow
from local.prepare import prepare
from protocol import IS_COMPILED
from schemas.errors import OperatorError
from schemas.flows import flow_name
from schemas.settings import SECRETS, Settings
from serve import serve_process

STOP_SECONDS = 17.0  # beyond `drain_seconds`: a process that hangs ends itself before `up` or the kubelet kills it
PR_SET_PDEATHSIG = 1

logger = logging.getLogger("sluice")


def run(name: str, settings: Settings) -> None:
    """Run one process until it is stopped. Returns when it has drained."""
    require(name, settings)
    hide(*(getattr(settings, name) for name in SECRETS))
    log_to_stderr(settings.log_format)
    stop_on_signals()
    broker.identify(name)
    health = Health(flow_name(name), settings.tuning.stalled_seconds)
    stop_seconds = settings.tuning.drain_seconds + STOP_SECONDS
    dog = Watchdog(health, STOP, settings.tuning.watchdog_seconds, stop_seconds, signals=Signals())
    dog.start()
    try:
        _serve_and_run(name, settings, health)
    finally:
        dog.ending()


def _serve_and_run(name: str, settings: Settings, health: Health) -> None:
    try:
        if name == "control":
            from control.api.serve import ApiServer  # noqa: PLC0415 - FastAPI: no other process loads it

            port = ApiServer(health, settings).start()
        else:
            port = serve_health(health, settings.http_host, settings.http_port, settings.http_names)
    except OSError as err:
        raise OperatorError(
            f"SLUICE_HTTP_PORT: {settings.http_host}:{settings.http_port} cannot be listened on ({err.strerror});"
            " choose another port, or 0 for a free one"
        ) from err
    if name in ("control", "backfill"):
        spool = Path(tempfile.gettempdir())
        watch_disk(name, *(("data", settings.data_dir) if name == "control" else ("spool", spool)))
    prepare(settings)
    logger.info("started", extra={"flow": flow_name(name), "http_port": port, "compiled": IS_COMPILED})
    if name == "control":
        control_process.run(settings, health)
    elif name == "serve":
        serve_process.run(settings, health)
    else:
        _run_flow(name, settings, health)
    logger.info("stopped", extra={"flow": flow_name(name)})


def _run_flow(name: str, settings: Settings, health: Health) -> None:
    collect_rarely()
    try:
        cli_main(dataflow(name, settings, health), epoch_interval=timedelta(seconds=settings.tuning.epoch_seconds))
    except BytewaxRuntimeError as err:
        cause = first_cause(err)
        if isinstance(cause, Stopping):
            return
        logger.exception("the flow failed", extra={"reason": f"{type(cause).__name__}: {cause}"})
        raise SystemExit(1) from err


def first_cause(error: BaseException) -> BaseException:
    """The original error: the engine wraps the exceptions of a flow, and connectors chain theirs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def require(name: str, settings: Settings) -> None:
    """Raise OperatorError for a setting that this process cannot do without, or that does not fit another one."""
    needed = {"kafka_bootstrap": "HOST:PORT of the brokers", "database": "postgresql://…"}
    if name in ("list-repos", "firehose"):
        needed["relays"] = "https://RELAY"
    if name == "labels":
        needed["labelers"] = "https://LABELER"
    for setting, example in needed.items():
        if not getattr(settings, setting):
            raise OperatorError(f"SLUICE_{setting.upper()} is not set; set it to {example} for `sluice run {name}`")
    if name == "firehose" and settings.tuning.firehose_share >= settings.firehose_shares:
        raise OperatorError(
            f"--share is {settings.tuning.firehose_share}, but SLUICE_FIREHOSE_SHARES is {settings.firehose_shares};"
            f" number the processes from 0 to {settings.firehose_shares - 1}"
        )


def die_with(parent: int) -> None:
    """End when the parent process ends, even by SIGKILL. `parent`: its pid; 0 does nothing."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(0)  # the parent ended before prctl took effect
