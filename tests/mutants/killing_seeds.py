"""Which schedule killed each mutant last time. `python -m tests.mutants.killing_seeds` searches for those that no longer do."""

import json
from pathlib import Path

from tests.mutants.all_mutants import MUTANTS
from tests.mutants.mutant import killed_by

SCHEDULES = 4000
FILE = Path(__file__).with_name("killing_seeds.json")


def known_killers() -> dict[str, int]:
    """Mutant → a seed that kills it: a shortcut, not a proof of anything."""
    known: dict[str, int] = json.loads(FILE.read_text("utf-8"))
    return known


def main() -> None:
    known, found = known_killers(), {}
    for one in MUTANTS:
        killed = killed_by(one, SCHEDULES, known.get(one.name))
        if killed is not None:
            found[one.name] = killed[0]
        print(one.name, found.get(one.name, "survives"))
    FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
