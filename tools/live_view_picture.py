"""The picture of the live view in the README, from a running `sluice up`: `python -m tools.live_view_picture [DATA_DIR]`."""

import re
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from control.attention import attention
from control.process_status import STREAM_KINDS, addresses, check_processes, running_mirror
from control.status import Collector
from local.progress_view import rates
from local.view.live_view import LiveView, Part
from schemas.settings import load

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "live-view.svg"
SECONDS = 10.0
WIDTH, HEIGHT = 100, 30
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.S)  # rich loads them from elsewhere


def view(data_dir: Path) -> LiveView:
    """What the terminal of `sluice up` shows now, without its events. Takes SECONDS, for the rates."""
    found = running_mirror(data_dir)
    if found is None:
        raise SystemExit(f"no `sluice up` runs in {data_dir}; start it, or name its data folder")
    folder, running = found
    given = {"kafka_bootstrap": running.bootstrap, "database": running.database, "data_dir": folder}
    settings = load(**given, relays=running.relays, serve_listen=running.serve or None)
    collector = Collector(settings)
    before, began = collector.collect(), time.monotonic()
    time.sleep(SECONDS)
    status = collector.collect(check_processes([one for one in running.processes if one.port], STREAM_KINDS))
    seconds = time.monotonic() - began
    collector.close()
    return LiveView(
        addresses=addresses(settings.model_copy(update={"data_dir": Path(".sluice")}), running.processes),
        status=replace(status, relays=running.relays),
        rates=rates(before, status, seconds),
        parts=[Part(one.kind, running=True, restarts=0) for one in running.processes],
        problems=attention(status, now=time.time()),
    )


def picture(shown: LiveView) -> str:
    """The view as SVG."""
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=StringIO(), force_terminal=True, highlight=False)
    console.print(shown)
    return FONTS.sub("", console.export_svg(title="sluice up"))


if __name__ == "__main__":
    PICTURE.write_text(picture(view(Path(*sys.argv[1:2] or [".sluice"]))), encoding="utf-8")
