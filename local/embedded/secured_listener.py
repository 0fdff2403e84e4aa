"""A listener of the embedded log with authentication: SASL (SCRAM-SHA-256, PLAIN), over TLS if it has a PEM.

For tests of clients. `SecuredListener(users, pem).settings(port)` are broker settings; `storage_options()` are options for formatting
the storage. The PEM has a private key (PKCS#8) and then its certificate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "SECURED"
_SECURITY = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class SecuredListener:
    """Users with their passwords; `pem`: key and certificate for TLS, None: plain text."""

    users: Mapping[str, str]
    pem: Path | None = None

    @property
    def protocol(self) -> str:
        """Kafka's name of the protocol."""
        return "SASL_SSL" if self.pem else "SASL_PLAINTEXT"

    def settings(self) -> dict[str, str]:
        mine = f"listener.name.{NAME.lower()}"
        known = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        found = {
            f"{mine}.sasl.enabled.mechanisms": "SCRAM-SHA-256,PLAIN",
            f"{mine}.plain.sasl.jaas.config": f"{_SECURITY}.plain.PlainLoginModule required {known};",
            f"{mine}.scram-sha-256.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
        }
        if self.pem:
            found |= {f"{mine}.ssl.keystore.type": "PEM", f"{mine}.ssl.keystore.location": str(self.pem)}
        return found

    def storage_options(self) -> list[str]:
        """The users, as options of the storage tool."""
        return [
            word
            for name, password in self.users.items()
            for word in ("--add-scram", f"SCRAM-SHA-256=[name={name},password={password}]")
        ]
