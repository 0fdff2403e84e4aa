"""How every client of ours reaches the broker: one place for addresses, TLS and SASL.

`options(settings) -> dict` is what each librdkafka client is made with. `Refusals` listens to a client's errors for
those that no waiting cures: a wrong password, a certificate that nobody trusts.
"""

import os
from typing import Any

from confluent_kafka import KafkaError

from schemas.settings import PREFIX, Settings, SettingsError

INCURABLE = {
    KafkaError._AUTHENTICATION: "correct SLUICE_BROKER_USERNAME, SLUICE_BROKER_PASSWORD and SLUICE_BROKER_MECHANISM",
    KafkaError.SASL_AUTHENTICATION_FAILED: "correct SLUICE_BROKER_USERNAME and SLUICE_BROKER_PASSWORD",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "set SLUICE_BROKER_MECHANISM to one that the broker has",
    KafkaError._SSL: "correct SLUICE_BROKER_PROTOCOL, or SLUICE_BROKER_CA to the authority of the broker's certificate",
}
FILES = {
    "ssl.ca.location": "broker_ca",
    "ssl.certificate.location": "broker_certificate",
    "ssl.key.location": "broker_key",
}


def options(settings: Settings) -> dict[str, Any]:
    """librdkafka's settings of the connection. Raises SettingsError for a file that cannot be read."""
    found: dict[str, Any] = {"bootstrap.servers": settings.bootstrap}
    if settings.broker_protocol != "plaintext":
        found["security.protocol"] = settings.broker_protocol
    if settings.broker_protocol.startswith("sasl_"):
        found |= {
            "sasl.mechanism": settings.broker_mechanism,
            "sasl.username": settings.broker_username,
            "sasl.password": settings.broker_password,
        }
    if settings.broker_protocol.endswith("ssl"):
        for name, setting in FILES.items():
            if path := getattr(settings, setting):
                if not os.access(path, os.R_OK):
                    raise SettingsError(f"{PREFIX}{setting.upper()}: {path} cannot be read; name a PEM file")
                found[name] = path
    return found


class Refusals:
    """An `error_cb`: remembers the first error that no waiting cures."""

    def __init__(self) -> None:
        self.first: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if self.first is None and error.code() in INCURABLE:
            self.first = error

    @property
    def remedy(self) -> str | None:
        """What was heard and what to correct; None while nothing was."""
        if self.first is None:
            return None
        said = self.first.str().partition(": ")[2] or self.first.str()
        return f"{said.strip()}; {INCURABLE[self.first.code()]}"
