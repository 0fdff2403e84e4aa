"""How many messages the next transaction takes, from how long the last one took.

A member of a consumer group hears of a rebalance between two batches only, so a batch that takes long holds the whole group.
"""

LEAST = 10  # below this the cost of a transaction itself is all that is left to save


def next_limit(limit: int, messages: int, seconds: float, *, bound: float, most: int) -> int:
    """The limit after a batch of `messages` under `limit` took `seconds`: half of what was too much, double what has room.

    Only a batch that was full proves that there is room for more, and only if twice as many had still fitted in `bound`.
    """
    if seconds > bound:
        return min(most, max(LEAST, messages // 2))
    if messages >= limit and 2 * seconds <= bound:
        return min(most, 2 * limit)
    return limit
