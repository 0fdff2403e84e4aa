"""The size of the index's next batch (G6: a rebalance waits for the batch that runs)."""

from hypothesis import given
from hypothesis import strategies as st

from steps.batch_size import LEAST, next_limit


def test_a_batch_that_took_too_long_is_halved() -> None:
    assert next_limit(5000, 5000, 8.0, bound=2.0, most=5000) == 2500
    assert next_limit(5000, 800, 8.0, bound=2.0, most=5000) == 400, "half of what it was, not of what was allowed"
    assert next_limit(5000, 1, 8.0, bound=2.0, most=5000) == LEAST


def test_room_is_taken_again_only_when_a_full_batch_proved_it() -> None:
    assert next_limit(400, 400, 0.9, bound=2.0, most=5000) == 800
    assert next_limit(400, 400, 1.1, bound=2.0, most=5000) == 400, "twice as many would not have fitted"
    assert next_limit(400, 399, 0.1, bound=2.0, most=5000) == 400, "it was not the limit that held it"
    assert next_limit(4000, 4000, 0.1, bound=2.0, most=5000) == 5000


def test_a_limit_below_the_least_stays() -> None:
    assert next_limit(3, 3, 9.0, bound=2.0, most=3) == 3


@given(per_message=st.floats(0.00001, 0.2), most=st.integers(1, 20_000), first=st.integers(1, 20_000))
def test_full_batches_come_below_the_bound_and_stay_there(per_message: float, most: int, first: int) -> None:
    """Whatever a message costs: after a few batches each is within the bound, or is the least, and is not far below it."""
    limit = min(first, most)
    for _ in range(40):
        limit = next_limit(limit, limit, limit * per_message, bound=2.0, most=most)
    assert 1 <= limit <= most
    assert limit * per_message <= 2.0 or limit <= LEAST
    assert limit == most or 4 * limit * per_message > 2.0
