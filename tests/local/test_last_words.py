"""The cause of an end, out of what processes and their engines really print."""

from __future__ import annotations

import json

import pytest

from local.children.last_words import LastWords

PANIC = """
thread '<unnamed>' panicked at src/run.rs:226:17:
Box<dyn Any>
stack backtrace:
   0: rust_begin_unwind
             at /rustc/library/std/src/panicking.rs:652:5
  38: _start
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
"""
STACKS = """
Thread 0x00007f5a3d7fa6c0 (most recent call first):
  File "connectors/kafka/consumer.py", line 108 in commit
  ...
Current thread 0x00007f5a412b3e80 (most recent call first):
  <no Python frame>
"""
TRACEBACK = """
Traceback (most recent call last):
  File "local/run.py", line 80, in run
    raise ValueError("what it was")
ValueError: what it was
"""


def log_line(level: str, event: str, **fields: object) -> str:
    return json.dumps({"time": "now", "level": level, "logger": "x", "event": event, **fields})


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (log_line("ERROR", "the flow failed", reason="OperationalError: gone", error="Traceback…") + PANIC, "OperationalError: gone"),
        (PANIC + log_line("ERROR", "the flow failed", reason="LogUnavailable:\nno broker"), "LogUnavailable: no broker"),
        (TRACEBACK, "ValueError: what it was"),
        (log_line("CRITICAL", "the process exits", reason="no progress for 60 s", exit_code=71) + "\n" + STACKS, "no progress for 60 s"),
        ("Fatal Python error: Segmentation fault\n" + STACKS, "Fatal Python error: Segmentation fault"),
        ("Timeout (0:01:30)!\n" + STACKS, "Timeout (0:01:30)!"),
        ("sluice: SLUICE_RELAYS is not set\n", "sluice: SLUICE_RELAYS is not set"),
        ("%3|1700000000.1|FAIL|rdkafka#consumer-1| [thrd:x]: connect failed\n", ""),
        (log_line("WARNING", "host paused", host="x") + "\n" + log_line("INFO", "stopped"), ""),
        (log_line("ERROR", "no reason", what=1), "no reason what=1"),
        ('{"level": "ERROR"}', '{"level": "ERROR"}'),
        ("[" * 100_000, "[" * 1000),
    ],
)  # fmt: skip
def test_the_cause_is_found(output: str, cause: str) -> None:
    """H1: `up` said `run with RUST_BACKTRACE=full`."""
    words = LastWords()
    for line in output.splitlines(keepends=True):
        words.read_line(line)
    assert words.text == cause
