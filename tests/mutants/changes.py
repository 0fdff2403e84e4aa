"""Changes of a function's syntax tree: each names the function and the part, and applies in exactly one place.

A part is Python source, compared as a syntax tree: line breaks and comments do not matter. A part that is not there, or
there twice, is a ValueError, so that a change of the code under test cannot silently turn a mutant into another one.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Replace = Callable[[ast.AST], bool]


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one function. `function`: its module, a colon, and its qualified name."""

    function: str
    rewrite: Callable[[ast.AST], int]
    """Edits the tree in place; returns in how many places."""


def replaced(function: str, old: str, new: str) -> Change:
    """The expression, or the consecutive statements, `old` become `new`."""
    before, after = _statements(old), _statements(new)
    if len(before) == len(after) == 1 and isinstance(before[0], ast.Expr) and isinstance(after[0], ast.Expr):
        return Change(function, lambda tree: _replace_nodes(tree, before[0].value, after[0].value))  # type: ignore[attr-defined]
    return Change(function, lambda tree: _replace_statements(tree, before, after))


def never(function: str, part: str) -> Change:
    """The condition that contains `part` is False: of an `if`, a conditional expression or a `case`."""
    return Change(function, lambda tree: _decide(tree, part, value=False))


def always(function: str, part: str) -> Change:
    """The condition that contains `part` is True."""
    return Change(function, lambda tree: _decide(tree, part, value=True))


def without(function: str, part: str) -> Change:
    """The one operand of an `and` or `or` that contains `part` decides nothing."""

    def rewrite(tree: ast.AST) -> int:
        places = 0
        for node in ast.walk(tree):
            if isinstance(node, ast.BoolOp):
                for at, operand in enumerate(node.values):
                    if _contains(operand, part) and not _within_another(operand, part):
                        node.values[at], places = ast.Constant(isinstance(node.op, ast.And)), places + 1
        return places

    return Change(function, rewrite)


def without_argument(function: str, name: str) -> Change:
    """The one keyword argument of this name is not passed."""

    def rewrite(tree: ast.AST) -> int:
        places = 0
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                kept = [keyword for keyword in node.keywords if keyword.arg != name]
                places += len(node.keywords) - len(kept)
                node.keywords = kept
        return places

    return Change(function, rewrite)


def removed(function: str, part: str) -> Change:
    """The one simple statement that contains `part` does nothing."""

    def rewrite(tree: ast.AST) -> int:
        places = 0
        for body in _bodies(tree):
            for at, statement in enumerate(body):
                if (
                    not hasattr(statement, "body")
                    and not isinstance(statement, ast.Match)
                    and _contains(statement, part)
                ):
                    body[at], places = ast.Pass(), places + 1
        return places

    return Change(function, rewrite)


def _statements(source: str) -> list[ast.stmt]:
    """Statements; those with `return` too. An empty source is `pass`."""
    return ast.parse(source).body or [ast.Pass()]


def _same(one: ast.AST, other: ast.AST) -> bool:
    return ast.dump(one) == ast.dump(other)


def _contains(node: ast.AST, part: str) -> bool:
    (statement,) = _statements(part)
    wanted = statement.value if isinstance(statement, ast.Expr) else statement
    return any(_same(one, wanted) for one in ast.walk(node))


def _within_another(operand: ast.AST, part: str) -> bool:
    """Whether a smaller `and` or `or` inside of it contains `part`: then that one is meant."""
    return any(isinstance(one, ast.BoolOp) and _contains(one, part) for one in ast.walk(operand))


def _bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield value


def _decide(tree: ast.AST, part: str, *, value: bool) -> int:
    places = 0
    for node in ast.walk(tree):
        name = "guard" if isinstance(node, ast.match_case) else "test"
        test = getattr(node, name, None)
        if isinstance(node, ast.If | ast.IfExp | ast.match_case) and test is not None and _contains(test, part):
            setattr(node, name, ast.Constant(value))
            places += 1
    return places


def _replace_nodes(tree: ast.AST, old: ast.AST, new: ast.AST) -> int:
    places = 0
    for node in list(ast.walk(tree)):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                found = [at for at, one in enumerate(value) if isinstance(one, ast.AST) and _same(one, old)]
                for at in found:
                    value[at] = new
                places += len(found)
            elif isinstance(value, ast.AST) and _same(value, old):
                setattr(node, name, new)
                places += 1
    return places


def _replace_statements(tree: ast.AST, old: list[ast.stmt], new: list[ast.stmt]) -> int:
    places = 0
    for body in list(_bodies(tree)):
        for at in range(len(body) - len(old), -1, -1):
            part = body[at : at + len(old)]
            if all(_same(one, other) for one, other in zip(part, old, strict=True)):
                body[at : at + len(old)] = new
                places += 1
    return places
