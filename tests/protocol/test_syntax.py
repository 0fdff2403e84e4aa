import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import syntax

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


@pytest.mark.parametrize(
    "did", [DID, "did:web:example.com", "did:web:localhost%3A1234", "did:method:val:two", "did:m:123-._x"]
)
def test_valid_dids(did: str) -> None:
    assert syntax.is_did(did)


@pytest.mark.parametrize(
    "did",
    [
        "",
        "did",
        "did:plc:",
        "DID:plc:a",
        "did:PLC:a",
        "did:plc:a:",
        "did:plc:a%",
        "did:plc:a/b",
        DID + "\n",
        "did:m:" + "a" * 2048,
    ],
)
def test_invalid_dids(did: str) -> None:
    assert not syntax.is_did(did)


@pytest.mark.parametrize("handle", ["a.co", "jay.bsky.social", "XN--ls8h.test", "8.cn", "a-b.c-d.ee", "handle.invalid"])
def test_valid_handles(handle: str) -> None:
    assert syntax.is_handle(handle)


@pytest.mark.parametrize(
    "handle",
    [
        "",
        "a",
        "a.",
        ".a.b",
        "-a.co",
        "a-.co",
        "a..co",
        "a.8",
        "a_b.co",
        "jo@hn.test",
        "a.co\n",
        "ä.de",
        "a." * 127 + "comm",
    ],
)
def test_invalid_handles(handle: str) -> None:
    assert not syntax.is_handle(handle)


@pytest.mark.parametrize(
    "nsid", ["app.bsky.feed.post", "com.example.fooBar", "a.0.c", "net.users.bob.ping", "cn.8.lex.stuff", "a-0.b-1.c3"]
)
def test_valid_nsids(nsid: str) -> None:
    assert syntax.is_nsid(nsid)


@pytest.mark.parametrize(
    "nsid",
    [
        "",
        "app.bsky",
        "app.bsky.feed.",
        "app..feed.post",
        "app.bsky.feed.po-st",
        "1app.bsky.post",
        "com.example.3",
        "app.bsky.feed.post\n",
        "a.b.c" * 80,
    ],
)
def test_invalid_nsids(nsid: str) -> None:
    assert not syntax.is_nsid(nsid)


@pytest.mark.parametrize("rkey", ["self", "3jui7kd54zh2y", "a:b~c_d-e.f", "...", "a" * 512])
def test_valid_rkeys(rkey: str) -> None:
    assert syntax.is_rkey(rkey)


@pytest.mark.parametrize("rkey", ["", ".", "..", "a/b", "a b", "a\n", "ü", "a" * 513, "a@b", "a\0"])
def test_invalid_rkeys(rkey: str) -> None:
    assert not syntax.is_rkey(rkey)


@pytest.mark.parametrize("tid", ["3jzfcijpj2z2a", "7777777777777", "2222222222222", "jzzzzzzzzzzzz"])
def test_valid_tids(tid: str) -> None:
    assert syntax.is_tid(tid)


@pytest.mark.parametrize(
    "tid", ["", "3jzfcijpj2z21", "kjzfcijpj2z2a", "3JZFCIJPJ2Z2A", "3jzfcijpj2z2aa", "3jzfcijpj2z2", "3jzf-cij-pj2z-2a"]
)
def test_invalid_tids(tid: str) -> None:
    assert not syntax.is_tid(tid)
    with pytest.raises(ValueError, match="not a TID"):
        syntax.tid_micros(tid)


def test_a_known_tid() -> None:
    assert syntax.tid_from_micros(0) == "2222222222222"
    assert syntax.tid_from_micros(0, 1) == "2222222222223"
    assert syntax.tid_from_micros((1 << 53) - 1, 1023) == "bzzzzzzzzzzzz"
    for micros, clock in ((1 << 53, 0), (-1, 0), (0, 1024)):
        with pytest.raises(ValueError, match="range"):
            syntax.tid_from_micros(micros, clock)


@given(st.integers(0, (1 << 53) - 1), st.integers(0, 1023), st.integers(0, (1 << 53) - 1), st.integers(0, 1023))
def test_tids_round_trip_and_sort_as_their_time(a: int, clock_a: int, b: int, clock_b: int) -> None:
    tid_a, tid_b = syntax.tid_from_micros(a, clock_a), syntax.tid_from_micros(b, clock_b)
    assert syntax.is_tid(tid_a)
    assert syntax.tid_micros(tid_a) == a
    assert (tid_a < tid_b) == ((a, clock_a) < (b, clock_b))


def test_paths() -> None:
    assert syntax.split_path("app.bsky.feed.post/3jui7kd54zh2y") == ("app.bsky.feed.post", "3jui7kd54zh2y")
    for path in (
        "",
        "/",
        "app.bsky.feed.post",
        "app.bsky.feed.post/",
        "app.bsky.feed.post/a/b",
        "app.bsky.feed.post/..",
        "x/y",
    ):
        assert syntax.split_path(path) is None


def test_hostile_lengths_cost_little() -> None:
    """G9: no identifier makes a pattern backtrack for long."""
    started = time.process_time()
    for text in ("a." * 158, "a" * 317, "a-" * 158, "a.b." * 79 + "-", "did:a:" + ":" * 2000, "x" * 100_000):
        for check in (syntax.is_nsid, syntax.is_handle, syntax.is_did, syntax.is_rkey):
            check(text)
            check(text[:253])
    assert time.process_time() - started < 2  # a pattern that backtracks takes hours


@given(st.text())
def test_checks_never_raise(text: str) -> None:
    for check in (
        syntax.is_did,
        syntax.is_handle,
        syntax.is_nsid,
        syntax.is_rkey,
        syntax.is_tid,
        syntax.split_path,
    ):
        check(text)
