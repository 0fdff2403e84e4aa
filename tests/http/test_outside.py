"""What comes from outside, before anything else sees it: JSON within limits, printable text, public addresses."""

import contextlib
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.http.addresses import address_allowed
from protocol.encoding.bounded_json import BadJson, JsonLimits, decode
from protocol.encoding.safe_text import is_printable, printable

LIMITS = JsonLimits(1024 * 1024, 40_000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b'{"repos":"\xff"}',
        b'{"a\xff":1}',
        b'"\\ud800"',
        b"[" * 100_000,
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"9" * 5000,
        b"1e999",
        b"-1e999999999",
        b"NaN",
        b"[" + b"[]," * 40_000 + b"[]]",
        b'"' + b"x" * (1024 * 1024) + b'"',
        b"\0",
        b"<html>",
    ],
    ids=lambda body: f"{body[:12]!r}x{len(body)}",
)
def test_malformed_or_too_much_json_is_one_kind_of_error_at_once(body: bytes) -> None:
    """H2, H3: invalid UTF-8 ended list_repos, eight megabytes of lists held its loop for 19 s."""
    started = time.thread_time()
    with pytest.raises(BadJson) as raised:
        decode(body, LIMITS)
    assert time.thread_time() - started < 1.0
    assert is_printable(str(raised.value))


def test_the_greatest_json_within_the_limits_takes_milliseconds() -> None:
    """H2: what the limits allow may be decoded in the event loop."""
    entries = b",".join(b"[]" for _ in range(19_990))
    took = []
    for _ in range(5):  # a pass of the garbage collector is not the decoder's time
        started = time.process_time()
        assert len(decode(b'{"repos":[' + entries + b"]}", LIMITS)["repos"]) == 19_990
        took.append(time.process_time() - started)
    assert min(took) < 0.1


@given(st.binary(max_size=200) | st.from_regex(rb'[\[\]{}",:0-9\\u\x80]{0,80}', fullmatch=True))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    """G7."""
    with contextlib.suppress(BadJson):
        decode(body, LIMITS)


def test_the_last_of_duplicate_keys_counts() -> None:
    assert decode(b'{"a":1,"a":2}', LIMITS) == {"a": 2}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ä ö 日本", "plain text, ä ö 日本"),
        ("\x1b]0;owned\x07", "\ufffd]0;owned\ufffd"),
        ("first\r\nWARNING forged line", "first WARNING forged line"),
        ("\x9b31mred", "\ufffd31mred"),
        ("safe\u202egnp.exe", "safe\ufffdgnp.exe"),
        ("a\u200bb\ufeffc\u2066d", "a\ufffdb\ufffdc\ufffdd"),
        ("a\u2028b\x85c", "a b c"),
        ("\ud800\0", "\ufffd\ufffd"),
        ("tag\U000e0041", "tag\ufffd"),
    ],
)
def test_control_direction_and_invisible_characters_are_replaced(text: str, shown: str) -> None:
    """H8."""
    assert printable(text) == shown
    assert is_printable(shown)


@given(st.text(), st.integers(1, 50))
def test_printable_text_has_a_bounded_length_and_no_control_character(text: str, limit: int) -> None:
    """H8."""
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in shown)
    shown.encode()  # no lone surrogate: it fits a text column


REFUSED = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:168.63.129.16",
    "::ffff:0:127.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "64:ff9b:1::808:808",
    "100::1",
    "100:0:0:1::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2001:0:808:808::f5ff:fffe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:a00:1::1",
    "3fff::1",
    "3fff:fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1%eth0",
    "fe80::5efe:808:808",
    "fec0::1",
    "ff02::1",
    "4000::1",
    "8000::1",
    "2600:1::5efe:7f00:1",
    "2600:1::200:5efe:a00:1",
    "2600:1::5efe:a9fe:a9fe",
    "nonsense",
    "1.2.3",
    "0x7f.1",
    "2130706433",
    "1.2.3.4.5",
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "192.88.98.1",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "2a00:1450::1",
    "2600:1::5efe:808:808",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """G9."""
    assert not address_allowed(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_and_the_neighbours_of_the_blocks_are_allowed(address: str) -> None:
    """G9."""
    assert address_allowed(address)
