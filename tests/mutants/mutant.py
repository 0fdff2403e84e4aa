"""A mutant: the code under test with one rule broken. `broken(mutant)` swaps the code of its functions, and puts it back."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from types import CodeType, FunctionType

from tests.model import gate_model
from tests.model.model_state import Violation
from tests.mutants.changes import Change


@dataclass(frozen=True)
class Mutant:
    """One broken rule. `focus`: weights of actions and faults (`gate_model.run`) under which it shows soon."""

    name: str
    changes: tuple[Change, ...]
    focus: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def codes(self) -> dict[str, tuple[FunctionType, CodeType]]:
        """Function → itself, and its broken code. Raises ValueError when a change does not fit in exactly one place."""
        by_function: dict[str, list[Change]] = {}
        for change in self.changes:
            by_function.setdefault(change.function, []).append(change)
        return {name: _broken(function_of(name), changes) for name, changes in by_function.items()}


def mutant(name: str, *changes: Change, **focus: float) -> Mutant:
    return Mutant(name, changes, focus)


@contextmanager
def broken(one: Mutant) -> Iterator[None]:
    """The functions run their broken code meanwhile, for all that imported them."""
    originals = [(function, function.__code__) for function, _ in one.codes.values()]
    try:
        for function, code in one.codes.values():
            function.__code__ = code
        yield
    finally:
        for function, code in originals:
            function.__code__ = code


def killed_by(one: Mutant, schedules: int, first: int | None = None) -> tuple[int, str] | None:
    """The first of so many schedules (seeds) that violates an invariant, and which; None: the mutant survived.

    `first`: the seed that killed it before, which is played before all others.
    """
    with broken(one):
        for seed in chain([] if first is None else [first], range(schedules)):
            try:
                gate_model.run(seed, focus=one.focus)
            except Violation as violation:
                return seed, str(violation)
    return None


def function_of(name: str) -> FunctionType:
    """The function, method or property getter of this name, like `steps.gate.model:Repo.left`."""
    module, _, path = name.partition(":")
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    assert isinstance(found, FunctionType), name
    return found


def tree_of(function: Callable[..., object]) -> ast.FunctionDef:
    """Its definition, without decorators."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list = []
    return tree


def _broken(function: FunctionType, changes: list[Change]) -> tuple[FunctionType, CodeType]:
    tree = tree_of(function)
    for change in changes:
        places = change.rewrite(tree)
        if places != 1:
            raise ValueError(f"{change.function}: the change applies in {places} places")
    module = ast.fix_missing_locations(ast.Module([tree], []))
    compiled = compile(module, function.__code__.co_filename, "exec")
    code = next(part for part in compiled.co_consts if isinstance(part, CodeType) and part.co_name == tree.name)
    return function, code
