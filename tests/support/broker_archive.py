"""`python -m tests.support.broker_archive`: a broker is started and stopped once, and writes its class archive.

With it, each broker of the tests costs half of the CPU seconds at its start. `make test` runs this first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from local.embedded.embedded_log import EmbeddedLog
from local.embedded.kafka_jars import cache_folder
from schemas.errors import OperatorError


def main() -> None:
    if any(cache_folder().glob("kafka-*/classes-*.jsa.*")):
        return
    sys.stderr.write("sluice: preparing the embedded broker …\n")
    try:
        with tempfile.TemporaryDirectory(prefix="sluice-broker-") as folder, EmbeddedLog(Path(folder)):
            pass
    except OperatorError as err:
        sys.stderr.write(f"sluice: {err}\n")  # the tests that need it say so again


if __name__ == "__main__":
    main()
