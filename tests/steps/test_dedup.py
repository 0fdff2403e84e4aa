"""Duplicates are known while memory lasts, and memory is bounded."""

from steps.dedup import DedupCache


def test_second_time_is_known() -> None:
    remembered = DedupCache(1000)
    assert remembered.add(("commit", "did:plc:a", "3k"))
    assert not remembered.add(("commit", "did:plc:a", "3k"))
    assert remembered.add(("commit", "did:plc:a", "3l"))


def test_at_least_half_of_the_limit_is_remembered_and_never_more_than_the_limit() -> None:
    """G6"""
    remembered = DedupCache(100)
    for key in range(1000):
        assert remembered.add(("k", key))
        assert len(remembered) <= 100
    assert all(not remembered.add(("k", key)) for key in range(999, 950, -1))
    assert remembered.add(("k", 1))


def test_a_key_in_use_is_not_forgotten() -> None:
    remembered = DedupCache(100)
    remembered.add("busy")
    for key in range(1000):
        remembered.add(key)
        assert not remembered.add("busy")
