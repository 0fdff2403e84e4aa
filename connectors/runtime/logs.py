"""Structured logs on standard error, without secrets: JSON in pods, text on a terminal."""

import json
import logging
import re
import sys

from protocol.encoding.safe_text import printable

FIELD_CHARACTERS = 2000
_PASSWORD = re.compile(r"(://[^\s:/@]*:)\S+@")
_hidden: set[str] = set()


def hide(*secrets: str) -> None:
    """Mask these strings in all log lines of this process."""
    _hidden.update(form for secret in secrets if secret for form in (secret, json.dumps(secret)[1:-1]))


def without_secrets(text: str) -> str:
    """The text with passwords in URLs and the strings of `hide` masked."""
    for secret in _hidden:
        text = text.replace(secret, "***")
    return _PASSWORD.sub(r"\1***@", text)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(_fields(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line, default=str))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={printable(str(value), FIELD_CHARACTERS)}" for key, value in _fields(record).items())
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {record.name}: {record.getMessage()} {fields}".rstrip()
        return without_secrets(line + ("\n" + self.formatException(record.exc_info) if record.exc_info else ""))


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def log_to_stderr(style: str = "auto") -> None:
    """Configure logging to standard error. `style`: json, text, or auto (text on a terminal)."""
    handler = logging.StreamHandler(sys.stderr)
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(_Text() if text else _Json())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
