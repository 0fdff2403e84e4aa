"""Errors that an operator can fix: one line that names the setting and the remedy, and exit code 2."""

import re

import psycopg
from psycopg.errors import UndefinedColumn, UndefinedFunction, UndefinedTable

from connectors.runtime.logs import without_secrets
from schemas.errors import OperatorError

BEHIND = (UndefinedTable, UndefinedColumn, UndefinedFunction)
"""Errors of PostgreSQL if the database lacks a migration."""

OPERATOR_ERRORS = (OperatorError, psycopg.OperationalError, *BEHIND)
_KAFKA = re.compile(r'KafkaError\{[^"}]*str="([^"]*)"\}')


def one_line(error: BaseException) -> str:
    """The error as one line without secrets. Database errors get the setting and the remedy."""
    if isinstance(error, BEHIND):
        lacks = error.diag.message_primary or " ".join(str(error).split())
        return f"SLUICE_DATABASE: {lacks}: the database is behind this release; run `sluice migrate`"
    text = without_secrets(_KAFKA.sub(r"\1", " ".join(str(error).split())))
    if isinstance(error, psycopg.OperationalError):
        return f"SLUICE_DATABASE: {text or 'no answer'}; start PostgreSQL or correct the URL"
    return text
