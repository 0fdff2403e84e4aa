"""Checks of `sluice up` before anything starts: addresses, a database or broker that was given, and what it would embed."""

import ipaddress
import shutil
from urllib.parse import urlsplit

from connectors.kafka.log import cluster_id
from connectors.postgres.connection import check_database
from local.embedded.embedded_database import find_binaries
from local.embedded.kafka_jars import check_present
from local.prepare import BROKER_SECONDS
from schemas.errors import OperatorError
from schemas.settings import Settings

ROOM_BYTES = 256 * 1024 * 1024  # free space that an embedded log or database needs to start


def check_hosts(settings: Settings) -> None:
    """Raise OperatorError for a private address while private hosts are not allowed: every request would be refused."""
    if settings.allow_private_hosts:
        return
    for url in (*settings.relays, *settings.labelers, settings.plc):
        host = urlsplit(url).hostname or ""
        try:
            private = not ipaddress.ip_address(host).is_global
        except ValueError:
            private = host == "localhost"
        if private:
            raise OperatorError(
                f"{url} is a private address; set SLUICE_ALLOW_PRIVATE_HOSTS=true to mirror your own network"
            )


def check_given(settings: Settings) -> None:
    """Raise OperatorError or LogUnavailable if a database or broker that was given does not answer."""
    if settings.database:
        check_database(settings)
    if settings.kafka_bootstrap:
        cluster_id(settings, BROKER_SECONDS)


def check_embeddable(settings: Settings) -> None:
    """Raise OperatorError if an embedded server could not start: no Java, Maven or PostgreSQL, or a full disk."""
    if not settings.kafka_bootstrap:
        check_present()
    if not settings.database:
        find_binaries()
    folder = settings.data_dir.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES and not (settings.kafka_bootstrap and settings.database):
        raise OperatorError(
            f"SLUICE_DATA_DIR: the disk of {settings.data_dir} is full ({free / 1e6:.0f} MB left, log and database need"
            f" {ROOM_BYTES / 1e6:.0f} MB to begin with); make room there, or choose another folder"
        )
