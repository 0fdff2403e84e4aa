"""The settings of every process. Each is also an environment variable `SLUICE_<NAME>`.

`load(**overrides) -> Settings` raises `SettingsError`, one line that names the setting and the remedy. An unknown
`SLUICE_…` variable is also an error, so that a misspelt setting is not silently ignored.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as NotJson

from protocol import PURE
from protocol.enforcement import Enforcement
from schemas.endpoints import BROKER, is_address, is_postgresql, service_url
from schemas.errors import OperatorError
from schemas.settings_renamed import RENAMED
from schemas.shard_ranges import shard_ranges
from schemas.tuning import Tuning

PREFIX = "SLUICE_"
SECRETS = ("api_token", "api_read_token", "kafka_password", "serve_token")
"""Settings whose value is never shown. In `database` and `shards` only passwords are masked."""
FOREIGN = {"SLUICE_CACHE_DIR", "SLUICE_TEST_CONTAINERS", PURE}
"""Variables with our prefix that are not settings."""
URLs = Annotated[list[str], NoDecode]


class SettingsError(OperatorError):
    """A setting is unknown or invalid; the message is one line."""


class Settings(BaseSettings):
    """The settings; `sluice settings` lists the public ones. The defaults fit one machine.

    Names of `Tuning` are accepted beside the public ones: `Settings(lease_seconds=2)` sets `tuning.lease_seconds`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # Kafka
    kafka_bootstrap: str = Field(
        "", description="Kafka-compatible brokers, HOST:PORT[,HOST:PORT]; empty: `sluice up` embeds one"
    )
    kafka_protocol: str = Field(
        "plaintext",
        pattern="^(plaintext|ssl|sasl_plaintext|sasl_ssl)$",
        description="connection to the brokers: plaintext, ssl (TLS), sasl_plaintext or sasl_ssl (with a user)",
    )
    kafka_mechanism: str = Field(
        "SCRAM-SHA-256",
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    )
    kafka_username: str = Field("", description="SASL user name")
    kafka_password: str = Field("", repr=False, description="SASL password")
    kafka_ca: str = Field("", description="PEM file with the brokers' certificate authorities; empty: the system's")
    kafka_certificate: str = Field("", description="PEM file with the client certificate, if the brokers require one")
    kafka_key: str = Field("", description="PEM file with its private key, without passphrase")
    kafka_topic_prefix: str = Field("", description="prefix of all topics and consumer groups")
    kafka_partitions: int = Field(
        32, ge=1, description="partitions of every per-repo topic; immutable (`sluice up`: 8)"
    )
    kafka_replication: int = Field(3, ge=1, description="replicas of every topic (`sluice up`: 1)")
    kafka_schema_registry: str = Field(
        "", description="URL of the schema registry where `sluice topics apply` registers the topics' JSON Schemas"
    )

    # database and files
    database: str = Field("", repr=False, description="PostgreSQL URL; empty: `sluice up` embeds one")
    shards: str = Field(
        "",
        repr=False,
        description="databases of the repos by partition, FIRST-LAST=URL separated by spaces; empty: all in SLUICE_DATABASE",
    )
    data_dir: Path = Field(Path(".sluice"), description="directory of `sluice up` with the embedded log and database")

    # network
    relays: URLs = Field(default_factory=list, description="relay URLs, comma-separated")
    labelers: URLs = Field(default_factory=list, description="labeler URLs, comma-separated")
    plc: str = Field("https://plc.directory", description="URL of the PLC directory or a mirror of it")
    allow_private_hosts: bool = Field(
        False, description="allow requests to loopback and private addresses (own networks, tests)"
    )
    user_agent: str = Field("sluice/0.1", description="User-Agent of every request")
    verify: Enforcement = Field(
        Enforcement.ENFORCE,
        description="signatures, MST inversion and size limits of live events: enforce (reject failures) or report"
        " (accept and count them)",
    )

    # identities and handles
    identity_requests_per_second: float = Field(
        200.0, gt=0, description="maximum requests a second to the PLC directory, per process"
    )
    handle_dns: str = Field(
        "", description="DNS server for handle checks, HOST or HOST:PORT; empty: those of this machine"
    )
    handle_recheck_seconds: float = Field(86_400.0, gt=0, description="interval between checks of a verified handle")
    handle_checks_per_second: float = Field(
        50.0, gt=0, description="maximum handle checks a second; each may cost one PLC request"
    )

    # streams and listings
    crawl_hosts: bool = Field(False, description="also list every PDS that the relays' listHosts names")
    firehose_start: str = Field(
        "tip", pattern="^(tip|oldest)$", description="start of a relay without a cursor: tip or oldest"
    )
    firehose_shares: int = Field(
        1, ge=1, description="number of firehose processes, each for its share of the repos; a change loses nothing"
    )
    stream_silence_seconds: float = Field(
        60.0, gt=0, description="reconnect a stream that has sent nothing for this long"
    )

    # backfill
    pds_concurrency: int = Field(
        5, ge=1, description="concurrent getRepo requests to one PDS, per worker; fewer to a slow one"
    )
    pds_requests: int = Field(3000, ge=1, description="maximum requests to one PDS in 5 minutes, from all workers")
    backfill_concurrency: int = Field(10, ge=1, le=1000, description="concurrent getRepo requests, per worker")
    backfill_max_attempts: int = Field(5, ge=1, description="failures before a repo is `failed`")
    backfill_max_car_bytes: int = Field(
        2 * 1024**3, ge=1024, description="largest accepted CAR, and largest sum of a repo's record bytes"
    )
    backfill_memory_bytes: int = Field(
        128 * 1024**2, ge=1024**2, description="maximum bytes of fetched repos in memory, per worker"
    )
    backfill_spool_bytes: int = Field(
        8 * 1024**3, ge=0, description="maximum bytes of CARs spooled to disk, per worker; above it repos wait"
    )

    # index
    appview: bool = Field(
        False, description="also maintain the tables of the official AppView (schema `bsky`; requires pg_trgm)"
    )

    # process
    http_host: str = Field(
        "127.0.0.1", description="listen address of /healthz, /readyz, /metrics and, in control, the API"
    )
    http_port: int = Field(0, ge=0, le=65535, description="port of these pages; 0: a free one")
    http_names: URLs = Field(
        default_factory=list,
        description="public host names of these pages, comma-separated; addresses and local names need no entry",
    )
    api_token: str = Field(
        "",
        repr=False,
        description="bearer token with full access to the API; without one only loopback may make changes",
    )
    api_read_token: str = Field("", repr=False, description="bearer token with read access to the API")
    serve_listen: str = Field(
        "127.0.0.1:0", description="listen address of `serve` for streams and XRPC reads, HOST:PORT; port 0: a free one"
    )
    serve_token: str = Field(
        "", repr=False, description="bearer token that clients of `serve` must send; empty: none is needed"
    )
    log_format: str = Field("auto", pattern="^(auto|json|text)$", description="json, text, or auto: text on a terminal")

    # private; tests set it as JSON in SLUICE_TUNING
    tuning: Tuning = Field(Tuning(), repr=False)

    @model_validator(mode="before")
    @classmethod
    def _route_tuning(cls, given: dict[str, Any]) -> dict[str, Any]:
        direct = {name: value for name, value in given.items() if name in Tuning.model_fields}
        if not direct:
            return given
        base = given.get("tuning", {})
        if isinstance(base, Tuning):
            base = base.model_dump(exclude_unset=True)
        return {name: value for name, value in given.items() if name not in direct} | {"tuning": base | direct}

    @field_validator("relays", "labelers", "http_names", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("relays", "labelers")
    @classmethod
    def _urls(cls, value: list[str]) -> list[str]:
        return [service_url(part) for part in value]

    @field_validator("database")
    @classmethod
    def _database(cls, value: str) -> str:
        if not is_postgresql(value):
            raise ValueError("not a PostgreSQL URL; correct the URL: write it as postgresql://USER@HOST/NAME")
        return value

    @field_validator("shards")
    @classmethod
    def _shards(cls, value: str) -> str:
        shard_ranges(value)
        return value

    @field_validator("kafka_bootstrap")
    @classmethod
    def _brokers(cls, value: str) -> str:
        if value and not all(BROKER.fullmatch(part.strip()) for part in value.split(",")):
            raise ValueError(f"{value!r} is not a list of brokers; write it as HOST:PORT[,HOST:PORT]")
        return value

    @field_validator("handle_dns")
    @classmethod
    def _dns(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if value and (not is_address(host if colon else value) or (colon and not port.isdecimal())):
            raise ValueError(f"{value!r} is not the address of a DNS server; write it as 192.0.2.53 or 192.0.2.53:5353")
        return value

    @field_validator("serve_listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{value!r} is not an address to listen on; write it as 0.0.0.0:8081")
        return value

    @field_validator("plc")
    @classmethod
    def _plc(cls, value: str) -> str:
        return service_url(value)

    def replaced(self, **changes: Any) -> "Settings":
        """A validated copy with these settings changed."""
        return Settings(**{name: getattr(self, name) for name in self.model_fields_set} | changes)

    @property
    def max_car_blocks(self) -> int:
        """Blocks of a CAR at most; the largest costs a worker 25 bytes of memory a block."""
        return max(1, self.backfill_max_car_bytes // self.tuning.car_block_bytes)

    def topic(self, name: str) -> str:
        """The topic's name with our prefix."""
        return self.kafka_topic_prefix + name

    def group(self, name: str) -> str:
        return f"{self.kafka_topic_prefix}sluice-{name}"


PUBLIC = tuple(name for name in Settings.model_fields if name != "tuning")


def load(**overrides: Any) -> Settings:
    """Settings from the environment, overridden by `overrides` that are not None. Raises SettingsError."""
    for name in os.environ:
        if name.startswith(PREFIX):
            _check_name(name)
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except NotJson as err:
        raise SettingsError(f"{PREFIX}TUNING: {err}") from err
    except ValidationError as err:
        first = err.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        shown = (
            "" if field in {*SECRETS, "database", "shards"} else f" (got {first['input']!r})"
        )  # a URL may hold a password
        raise SettingsError(f"{PREFIX}{field.upper()}: {reason}{shown}") from err
    _check_broker(settings)
    _check_shards(settings)
    return settings


def _check_name(variable: str) -> None:
    """Raise SettingsError for an unknown variable."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    if variable.upper() in known | FOREIGN:
        return
    old = variable.upper().removeprefix(PREFIX).lower()
    if old in RENAMED:
        raise SettingsError(f"{variable} is now {PREFIX}{RENAMED[old].upper()}; rename it")
    if old in Tuning.model_fields:
        raise SettingsError(f"{variable} is no longer a setting; remove it")
    near = difflib.get_close_matches(variable, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "`sluice settings` lists them"
    raise SettingsError(f"{variable} is not a setting; {hint}")


def _check_broker(settings: Settings) -> None:
    """Check that the settings of the broker connection are consistent. Raises SettingsError."""
    protocol = f"{PREFIX}KAFKA_PROTOCOL"
    if settings.kafka_protocol.startswith("sasl_"):
        for name in ("kafka_username", "kafka_password"):
            if not getattr(settings, name):
                raise SettingsError(
                    f"{PREFIX}{name.upper()} is not set; {protocol}={settings.kafka_protocol} requires it"
                )
    elif settings.kafka_username or settings.kafka_password:
        raise SettingsError(
            f"{protocol} is {settings.kafka_protocol}, which sends no user; set it to sasl_ssl (or sasl_plaintext),"
            f" or unset {PREFIX}KAFKA_USERNAME and {PREFIX}KAFKA_PASSWORD"
        )
    for name in ("kafka_ca", "kafka_certificate", "kafka_key"):
        if getattr(settings, name) and not settings.kafka_protocol.endswith("ssl"):
            raise SettingsError(
                f"{PREFIX}{name.upper()} is set, but {protocol} is {settings.kafka_protocol}; set it to ssl or sasl_ssl"
            )
    if bool(settings.kafka_certificate) != bool(settings.kafka_key):
        raise SettingsError(f"{PREFIX}KAFKA_CERTIFICATE and {PREFIX}KAFKA_KEY go together; set both or none")


def _check_shards(settings: Settings) -> None:
    """Check the ranges against the other settings. Raises SettingsError."""
    ranges = shard_ranges(settings.shards)
    if not ranges:
        return
    if settings.appview:
        raise SettingsError(f"{PREFIX}APPVIEW needs all repos in one database; unset it, or unset {PREFIX}SHARDS")
    if settings.kafka_partitions != ranges[-1].last + 1:
        raise SettingsError(
            f"{PREFIX}SHARDS ends at partition {ranges[-1].last}, but {PREFIX}KAFKA_PARTITIONS is"
            f" {settings.kafka_partitions}; the ranges must cover all partitions, whose number never changes"
        )
    if settings.database in {one.url for one in ranges}:
        raise SettingsError(f"{PREFIX}SHARDS names the database of {PREFIX}DATABASE; give each shard its own")


def variables(settings: Settings) -> dict[str, str]:
    """The explicitly set settings, as environment variables for a child process."""
    return {PREFIX + name.upper(): spell(getattr(settings, name)) for name in sorted(settings.model_fields_set)}


def spell(value: Any) -> str:
    """A setting's value in the syntax of its environment variable."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    if isinstance(value, Tuning):
        return value.model_dump_json(exclude_unset=True)
    return str(value)
