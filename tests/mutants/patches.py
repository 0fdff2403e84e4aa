"""Copies of the code under test with one rule broken: `load(edits)` compiles the modules from edited source.

A `Mutant` names the clause and its edits (module, old text, new text); old text that is not there exactly once is an
error, so that a mutant follows the code that it breaks. The real modules stay as they are.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType

MODULES = (
    "steps.gate.model",
    "protocol.account_status",
    "steps.gate.ratchet",
    "steps.gate.transitions",
    "steps.gate.batch",
    "tests.model.model_filters",
    "tests.model.model_tables",
    "tests.model.model_messages",
    "tests.model.model_relays",
    "tests.model.model_state",
    "tests.model.model_checks",
    "tests.model.model_upstream",
    "tests.model.model_workers",
    "tests.model.model_index",
    "tests.model.gate_model",
)
"""In the order in which they import one another."""


@dataclass(frozen=True, slots=True)
class Edit:
    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken rule, by the edits that break it."""

    name: str
    edits: tuple[Edit, ...]


def gate(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Edit("steps.gate.transitions", old, new),))


def ratchet(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Edit("steps.gate.ratchet", old, new),))


def upstream_state(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Edit("tests.model.model_state", old, new),))


def settle(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Edit("steps.gate.batch", old, new),))


def tables(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Edit("tests.model.model_tables", old, new),))


def filters(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Edit("tests.model.model_filters", old, new),))


def load(edits: Sequence[Edit]) -> ModuleType:
    """The model's module (`gate_model`), running on edited copies. Raises ValueError when an edit does not fit."""
    originals = {name: importlib.import_module(name) for name in MODULES}
    try:
        for name in MODULES:
            module = ModuleType(name)
            sys.modules[name] = module
            _bind(name, module)
            path = Path(str(originals[name].__file__))
            exec(compile(_edited(path.read_text(), name, edits), path, "exec"), module.__dict__)  # our own source
        return sys.modules["tests.model.gate_model"]
    finally:
        for name, module in originals.items():
            sys.modules[name] = module
            _bind(name, module)


def _edited(source: str, name: str, edits: Sequence[Edit]) -> str:
    for edit in edits:
        if edit.module != name:
            continue
        if source.count(edit.old) != 1:
            raise ValueError(f"{name}: {source.count(edit.old)} times {edit.old!r}")
        source = source.replace(edit.old, edit.new)
    return source


def killed_by(
    mutant: Mutant, schedules: int, focus: Mapping[str, float] | None = None, first: int | None = None
) -> str | None:
    """The first violation within so many schedules; None: it survived. `focus`: which faults to try it with.

    `first`: the seed that killed it before, which is played before all others.
    """
    model = load(mutant.edits)
    for seed in chain([] if first is None else [first], range(schedules)):
        try:
            model.run(seed, focus=focus)
        except model.Violation as violation:
            return str(violation)
    return None


def _bind(name: str, module: ModuleType) -> None:
    """Set a module in its package, as an import does."""
    package, _, leaf = name.rpartition(".")
    if package:
        setattr(sys.modules[package], leaf, module)
