"""Array literals mean to PostgreSQL what the Python values mean."""

from __future__ import annotations

import math

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.postgres.pg_array import array

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)) | st.sampled_from('\\"{},NULL\n '))
AS_IT_IS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def through(database: str, kind: str, values: list[object]) -> list[object]:
    with psycopg.connect(database) as db:
        row = db.execute(f"select %s::{kind}[]".encode(), (array(values),)).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return list(row[0])


def test_texts_come_back_as_they_were(database: str) -> None:
    with psycopg.connect(database) as db:

        @AS_IT_IS
        @given(st.lists(st.none() | TEXTS, max_size=20))
        def round_trip(values: list[str | None]) -> None:
            row = db.execute("select %s::text[]", (array(values),)).fetchone()
            assert row == (values,)

        round_trip()


def test_plain_texts_take_the_short_way_and_quotes_do_not(database: str) -> None:
    assert array(["did:plc:a", "", "NULL"]) == '{"did:plc:a","","NULL"}'
    assert through(database, "text", ['a","b']) == ['a","b']
    assert through(database, "text", ["a", 'b"', '"']) == ["a", 'b"', '"']


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", []),
        ("text", [None, None]),
        ("boolean", [True, False, None]),
        ("bigint", [2**63 - 1, -(2**63), None, 0]),
        ("float8", [0.1, 5e-324, None, 1.7976931348623157e308]),
        ("bytea", [b"", bytes(range(256)), None]),
    ],
)
def test_every_type_that_a_column_has(database: str, kind: str, values: list[object]) -> None:
    assert through(database, kind, values) == values


def test_numbers_that_are_none(database: str) -> None:
    back = through(database, "float8", [math.inf, -math.inf, math.nan])
    assert back[:2] == [math.inf, -math.inf]
    assert isinstance(back[2], float)
    assert math.isnan(back[2])


def test_nul_is_refused_as_data(database: str) -> None:
    with pytest.raises(psycopg.DataError):
        through(database, "text", ["a\x00b"])
