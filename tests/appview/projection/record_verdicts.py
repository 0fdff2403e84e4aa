"""Asks the official validators about `lexicon_cases`, and writes what they say beside the tests.

    python -m tests.appview.projection.record_verdicts OLD_MODULES NEW_NODE NEW_MODULES

OLD_MODULES is `.sluice/official/node_modules`; NEW_NODE a Node 22, NEW_MODULES a folder with @atproto/bsky 0.0.280,
@atproto/api, @atproto/lex and @atproto/syntax (`npm install`). Needed again when the lexicons or the cases change.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.appview.projection import lexicon_cases
from tests.appview.projection.time_cases import TIMES

HERE = Path(__file__).resolve().parent / "recorded"


def main(old: str, node: str, new: str) -> None:
    """Write verdicts.json and times.json."""

    def ask(mode: str, lines: list[str], *modules: str) -> str:
        command = [node, str(HERE / "verdicts.mjs"), mode, *modules]
        return subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True).stdout

    asked = lexicon_cases.asked()
    lines = [lexicon_cases.line(*case).decode() for case in asked]
    found: dict[str, str] = {"cases": lexicon_cases.digest(asked)}
    for mode, modules in {"lenient": (old, new), "strict": (new,)}.items():
        verdicts = ask(mode, lines, *modules)
        found[mode] = f"{int(verdicts, 2):0{len(lines) // 4 + 1}x}"
    (HERE / "verdicts.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "times.jsonl").write_text(ask("times", [json.dumps(text) for text in TIMES], old))


if __name__ == "__main__":
    main(*sys.argv[1:])
