"""Events that wait beside the stream: order, bytes, and the positions that they hold back."""

from steps.deferred import SIZE_EACH, SIZE_FACTOR, Deferred

A, B = "https://a.example", "https://b.example"


def filled() -> Deferred[str]:
    one = Deferred[str](10_000, 5000)
    one.add("x", "x1", 100, upstream=A, seq=7, trusted=True, mark="m1")
    one.add("y", "y1", 100, upstream=A, seq=8, trusted=False)
    one.add("x", "x2", 100, upstream=A, seq=9, trusted=True, mark="m2")
    return one


def test_the_events_of_a_key_keep_their_order_when_only_some_are_released() -> None:
    """G4."""
    one = filled()
    one.add("x", "x3", 100, upstream=A, seq=10, trusted=True)
    released: list[str] = []

    def first_one(item: str) -> bool:
        assert "x" not in one
        released.append(item)
        return len(released) < 2

    assert one.release("x", 1000, first_one) == 900
    assert (released, one.count("x"), len(one)) == (["x1", "x2"], 2, 3)
    one.add("x", "x4", 0, upstream=A, seq=11, trusted=True)
    assert (one.take("x"), one.take("y"), one.take("z")) == (["x2", "x3", "x4"], ["y1"], [])
    assert (len(one), one.size, one.count("x")) == (0, 0, 0)


def test_a_release_ends_when_its_room_is_used_up() -> None:
    """H2."""
    one = filled()
    assert one.release("x", 0, lambda _: True) == 0
    assert one.release("x", 50, lambda _: True) == -50
    assert one.take("x") == ["x2"]


def test_no_position_passes_what_waits() -> None:
    """G8."""
    one = filled()
    assert (one.passable(A, 20), one.passable(A, 5), one.passable(B, 20)) == (6, 5, 20)
    one.take("x")
    assert one.passable(A, 20) == 7
    one.take("y")
    assert one.passable(A, 20) == 20


def test_a_copy_of_a_deferred_event_holds_its_own_upstream_too() -> None:
    """G8: the copy was dropped, and the event is not durable."""
    one = filled()
    one.repeat("m2", B, 500)
    one.repeat("m2", B, 400)
    one.repeat("of an event that was written", B, 3)
    assert one.passable(B, 1000) == 399
    one.take("x")
    one.repeat("m2", B, 600)
    assert one.passable(B, 1000) == 1000


def test_each_kind_has_its_own_limit_in_bytes() -> None:
    """H2, H3: untrusted hosts take no room from the directory."""
    one = Deferred[int](10_000, 5000)
    while not one.full(trusted=False):
        one.add("web", 0, 500, upstream=A, seq=1, trusted=False)
    assert not one.full(trusted=True)
    assert one.size == len(one) * (SIZE_EACH + SIZE_FACTOR * 500)
    assert one.size < 5000 + SIZE_EACH + SIZE_FACTOR * 500
