"""What an operator can put right: one line that names the setting and the remedy, and exit code 2."""

import re

import psycopg
from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable

from appview.state import AppviewUnavailable
from connectors.kafka.log import LogUnavailable
from connectors.postgres.migrate import MigrationError
from connectors.runtime.process import without_secrets
from local.embedded.database import DatabaseUnavailable
from local.embedded.log import LogUnavailable as EmbeddedLogUnavailable
from schemas.settings import SettingsError

EXIT_OPERATOR = 2


class OperatorError(Exception):
    """A wrong setting or a missing service; the message is one line with its remedy."""


BEHIND = (UndefinedTable, UndefinedColumn, UndefinedFunction)
"""What a database says that lacks a migration."""

OPERATOR_ERRORS = (
    OperatorError,
    SettingsError,
    MigrationError,
    AppviewUnavailable,
    LogUnavailable,
    EmbeddedLogUnavailable,
    DatabaseUnavailable,
    psycopg.OperationalError,
    *BEHIND,
)
NO_URL = "this is no URL of a PostgreSQL (postgresql://USER@HOST/NAME)"
_KAFKA = re.compile(r'KafkaError\{[^"}]*str="([^"]*)"\}')


def one_line(error: BaseException) -> str:
    """The error as one line; a database that does not answer, or is behind, names its setting and the remedy."""
    if isinstance(error, BEHIND):
        lacks = error.diag.message_primary or " ".join(str(error).split())
        return f"SLUICE_DATABASE: {lacks}: the database is behind this release; run `sluice migrate`"
    text = without_secrets(_KAFKA.sub(r"\1", " ".join(str(error).split())))
    if isinstance(error, psycopg.OperationalError):
        return f"SLUICE_DATABASE: {text or 'no answer'}; start PostgreSQL or correct the URL"
    return text
