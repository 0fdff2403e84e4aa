"""Why a process ended, from its output: `LastWords`.

The cause is the last meaningful line: an error of the log, the exception of a traceback, the one line of an operator's error, or a
fatal error of the interpreter. It leaves out what engines and libraries print around it: stack frames, notes about backtraces, lines
of librdkafka.
"""

import json
import re
from typing import Any

GRAVE = ("ERROR", "CRITICAL")
LINE_CHARACTERS = 1000
_FRAME = ("time", "level", "logger", "event", "error")
_NOISE = re.compile(
    r"\s"  # frames are indented
    r"|note: |stack backtrace:|thread '|\d+: |Box<dyn Any>"  # of a panic in Rust
    r"|Traceback \(most recent|During handling of the above|The above exception was"
    r"|Thread 0x|Current thread 0x|Stack \(most recent|Extension modules:|<no Python frame>|\.\.\.$"  # of faulthandler
    r"|%\d\|"  # of librdkafka
)


class LastWords:
    """`read_line` every line of output; `text` is the cause so far, as one line."""

    def __init__(self) -> None:
        self.text = ""

    def read_line(self, line: str) -> dict[str, Any] | None:
        """Read one line of output. Returns the fields of a log line, None for any other line."""
        line = line.rstrip()
        page = _page(line)
        if page is None:
            if line and not _NOISE.match(line):
                self.text = _short(line)
        elif page["level"] in GRAVE:
            self.text = _short(str(page.get("reason") or log_text(page)))
        return page


def log_text(page: dict[str, Any]) -> str:
    """A log line as text for an operator."""
    fields = " ".join(f"{key}={value}" for key, value in page.items() if key not in _FRAME)
    return f"{page['event']} {fields}".strip()


def _short(text: str) -> str:
    return " ".join(text.split())[:LINE_CHARACTERS]


def _page(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        page = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return page if isinstance(page, dict) and "level" in page and "event" in page else None
