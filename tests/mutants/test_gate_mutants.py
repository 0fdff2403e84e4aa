"""Breaking any one rule of the gate makes the model fail: each mutant must be caught by some schedule.

`killing_seeds.json` has a schedule that killed it before: it is played first, and is enough. Where it no longer kills, all
schedules are searched; `python -m tests.mutants.killing_seeds` finds new ones.
"""

import ast
from collections import Counter
from collections.abc import Callable

import pytest

from tests.model import gate_model
from tests.mutants.all_mutants import MUTANTS
from tests.mutants.changes import Change, always, never, removed, replaced, without, without_argument
from tests.mutants.killing_seeds import SCHEDULES, known_killers
from tests.mutants.mutant import Mutant, broken, function_of, killed_by, mutant, tree_of
from tests.support.size import sized

SEEDS: dict[str, int] = sized(known_killers(), {})


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_a_broken_rule_is_caught(one: Mutant) -> None:
    """G1, G2, G4, P1, P3, C1, C2, C4, N9: the rule is needed, and the model sees it. The original passes the same schedule."""
    killed = killed_by(one, SCHEDULES, SEEDS.get(one.name))
    assert killed, f"no schedule of {SCHEDULES} caught: {one.name}"
    gate_model.run(killed[0], focus=one.focus)


def test_each_mutant_differs_from_the_original_and_from_the_others() -> None:
    """Each change applies exactly once (else `codes` raises), and leaves another function than before."""
    names = Counter(one.name for one in MUTANTS)
    assert names.most_common(1)[0][1] == 1
    trees = Counter()
    for one in MUTANTS:
        assert one.codes
        changed = []
        for change in one.changes:
            tree = tree_of(function_of(change.function))
            before = ast.dump(tree)
            assert change.rewrite(tree) == 1, f"{one.name}: {change.function}"
            assert ast.dump(tree) != before, f"{one.name}: {change.function}"
            changed.append(ast.dump(tree))
        trees[tuple(changed)] += 1
    assert trees.most_common(1)[0][1] == 1
    assert set(known_killers()) == set(names)


def test_the_original_runs_again_after_a_mutant() -> None:
    one = next(one for one in MUTANTS if one.name == "the chain is not checked")
    ((function, code),) = one.codes.values()
    original = function.__code__
    with broken(one):
        assert function.__code__ is code is not original
    assert function.__code__ is original


def sample(a: list[int], b: int) -> int:
    """For the test below: every part is here twice."""
    if (a or b) and b:
        a.append(b)
    elif b:
        a.insert(0, b)
    return max(a, key=abs) + min(a, key=abs)


@pytest.mark.parametrize(
    "kind", [never, always, without, removed, without_argument, lambda at, old: replaced(at, old, "0")]
)
def test_a_change_that_does_not_fit_exactly_once_is_an_error(kind: Callable[[str, str], Change]) -> None:
    for part in ("key" if kind is without_argument else "b", "no_such_name"):
        with pytest.raises(ValueError, match="applies in"):
            mutant("none", kind("tests.mutants.test_gate_mutants:sample", part)).codes  # noqa: B018  # the access is the point
