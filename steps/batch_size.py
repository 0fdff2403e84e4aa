"""The message limit of the next transaction, from the duration of the last one.

A member of a consumer group learns of a rebalance only between batches, so a long batch delays the whole group.
"""

LEAST = 10  # messages; with fewer, the fixed cost of a transaction dominates


def next_limit(limit: int, messages: int, seconds: float, *, bound: float, most: int) -> int:
    """The limit after a batch of `messages` took `seconds`: half of the messages if over `bound`, else perhaps double the limit.

    It doubles only after a full batch that took at most half of `bound`.
    """
    if seconds > bound:
        return min(most, max(LEAST, messages // 2))
    if messages >= limit and 2 * seconds <= bound:
        return min(most, 2 * limit)
    return limit
