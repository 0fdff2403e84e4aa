"""Times are spelt so that text order is time order."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding.timestamps import canonical, from_unix


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2024-01-02T03:04:05.678Z", "2024-01-02T03:04:05.678Z"),
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05.000Z"),
        ("2024-01-02T03:04:05.6Z", "2024-01-02T03:04:05.600Z"),
        ("2024-01-02T03:04:05.678999999Z", "2024-01-02T03:04:05.678Z"),
        ("2024-01-02T03:04:05+00:00", "2024-01-02T03:04:05.000Z"),
        ("2024-01-02T03:04:05.5-01:30", "2024-01-02T04:34:05.500Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000Z"),
        ("2023-02-29T00:00:00Z", None),
        ("2023-04-31T00:00:00Z", None),
        ("2024-01-02T24:00:00Z", None),
        ("2024-01-02T03:04:60Z", None),
        ("2024-01-02T03:04:05", None),
        ("2024-01-02", None),
        ("0000-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("2024-01-02T03:04:05Z\n", None),
        ("２０２４-01-02T03:04:05Z", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_spellings(text: object, wanted: str | None) -> None:
    assert canonical(text) == wanted


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9998, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_any_zone_is_the_same_moment(moment: datetime, offset: int) -> None:
    from datetime import timedelta, timezone

    there = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=offset)))
    text = canonical(there.isoformat())
    assert text is not None
    assert len(text) == 24
    assert datetime.fromisoformat(text) == moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)


@given(st.text(max_size=70))
def test_never_raises(text: str) -> None:
    canonical(text)


def test_from_unix() -> None:
    assert from_unix(0.9999) == "1970-01-01T00:00:00.999Z"
