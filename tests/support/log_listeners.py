"""Listeners of the embedded log for tests of clients: one behind a proxy, one with authentication."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local.embedded.embedded_log import EmbeddedLog, LogListener
from local.embedded.guarded_process import LOOPBACK, free_port

SECURED = "SECURED"
SECURITY = "org.apache.kafka.common.security"


class ProxiedLog(EmbeddedLog):
    """It tells `advertised_port` to clients of a second listener: a proxy there, before `proxied_address`, sees all their traffic."""

    def __init__(self, data_dir: Path, **more: Any) -> None:
        self.advertised_port = free_port()
        super().__init__(data_dir, listeners={"PROXIED": LogListener(advertised=self.advertised_port)}, **more)

    @property
    def proxied_address(self) -> tuple[str, int]:
        return LOOPBACK, self.port_of("PROXIED")


def secured_listener(users: Mapping[str, str], pem: Path) -> dict[str, LogListener]:
    """SASL (SCRAM-SHA-256, PLAIN) over TLS for users with their passwords. `pem`: a private key (PKCS#8), then its certificate."""
    mine = f"listener.name.{SECURED.lower()}"
    known = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    settings = {
        f"{mine}.sasl.enabled.mechanisms": "SCRAM-SHA-256,PLAIN",
        f"{mine}.plain.sasl.jaas.config": f"{SECURITY}.plain.PlainLoginModule required {known};",
        f"{mine}.scram-sha-256.sasl.jaas.config": f"{SECURITY}.scram.ScramLoginModule required;",
        f"{mine}.ssl.keystore.type": "PEM",
        f"{mine}.ssl.keystore.location": str(pem),
    }
    options = [
        word
        for name, password in users.items()
        for word in ("--add-scram", f"SCRAM-SHA-256=[name={name},password={password}]")
    ]
    return {SECURED: LogListener("SASL_SSL", settings=settings, storage_options=options)}
