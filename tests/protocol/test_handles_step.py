"""What a domain says of a handle, and what follows from it."""

import pytest

from protocol.handle import (
    DomainAnswer,
    DomainResult,
    HandleStatus,
    from_txt,
    from_well_known,
    is_resolvable,
    joined,
    judge,
    next_check,
)

ONE, TWO = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
FOUND, OTHER = DomainAnswer(DomainResult.FOUND, ONE), DomainAnswer(DomainResult.FOUND, TWO)
NOTHING = DomainAnswer(DomainResult.NOTHING)
AMBIGUOUS = DomainAnswer(DomainResult.AMBIGUOUS)
DNS_SILENT, WEB_SILENT = DomainAnswer(DomainResult.DNS_SILENT), DomainAnswer(DomainResult.WEB_SILENT)


@pytest.mark.parametrize(
    ("records", "answer"),
    [
        ([f"did={ONE}"], DomainResult.FOUND),
        (["v=spf1 -all", f"did={ONE}", f"did={ONE}"], DomainResult.FOUND),
        ([f"did={ONE}", f"did={TWO}"], DomainResult.AMBIGUOUS),
        ([f"did={ONE}", "did=nonsense"], DomainResult.FOUND),
        (["did=", "did=did:plc:\x00", f" did={ONE}", "DID=x"], DomainResult.NOTHING),
        ([], DomainResult.NOTHING),
    ],
)
def test_txt_records_name_one_did_or_none(records: list[str], answer: DomainResult) -> None:
    said = from_txt(records)
    assert (said.result, said.did) == (answer, ONE if answer is DomainResult.FOUND else None)


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (200, ONE.encode(), DomainResult.FOUND),
        (200, b"\n " + ONE.encode() + b"\r\n", DomainResult.FOUND),
        (200, b"<html>" + ONE.encode(), DomainResult.NOTHING),
        (200, ONE.encode() + b"\n" + TWO.encode(), DomainResult.NOTHING),
        (200, b"\xff\xfe", DomainResult.NOTHING),
        (200, ONE.encode() + b" " * 4000, DomainResult.NOTHING),
        (404, ONE.encode(), DomainResult.NOTHING),
        (403, b"", DomainResult.NOTHING),
        (429, b"", DomainResult.WEB_SILENT),
        (500, ONE.encode(), DomainResult.WEB_SILENT),
        (503, b"", DomainResult.WEB_SILENT),
    ],
)
def test_a_web_host_names_a_did_and_nothing_else(status: int, body: bytes, answer: DomainResult) -> None:
    assert from_well_known(status, body).result is answer


@pytest.mark.parametrize(
    ("dns", "web", "expected"),
    [
        (FOUND, None, FOUND),
        (FOUND, OTHER, FOUND),  # DNS goes first
        (AMBIGUOUS, FOUND, AMBIGUOUS),
        (NOTHING, FOUND, FOUND),
        (DNS_SILENT, FOUND, FOUND),
        (DNS_SILENT, NOTHING, DNS_SILENT),
        (DNS_SILENT, WEB_SILENT, DNS_SILENT),
        (NOTHING, WEB_SILENT, WEB_SILENT),
    ],
)
def test_dns_has_priority_and_a_timeout_is_no_answer(
    dns: DomainAnswer, web: DomainAnswer | None, expected: DomainAnswer
) -> None:
    assert joined(dns, web) == expected


def test_both_ways_nothing_is_a_verdict() -> None:
    assert joined(NOTHING, NOTHING).result is DomainResult.NOTHING


@pytest.mark.parametrize(
    ("handle", "said", "standing"),
    [
        ("a.example.com", FOUND, HandleStatus.VERIFIED),
        ("a.example.com", OTHER, HandleStatus.ELSEWHERE),
        ("a.example.com", NOTHING, HandleStatus.NOT_RESOLVED),
        ("a.example.com", AMBIGUOUS, HandleStatus.AMBIGUOUS),
        ("a.example.com", DNS_SILENT, HandleStatus.DNS_SILENT),
        ("a.example.com", WEB_SILENT, HandleStatus.WEB_SILENT),
        ("handle.invalid", FOUND, HandleStatus.NO_HANDLE),
        (None, None, HandleStatus.NO_HANDLE),
    ],
)
def test_a_handle_is_verified_only_if_both_ways_agree(
    handle: str | None, said: DomainAnswer | None, standing: HandleStatus
) -> None:
    """A claim of the document alone, or a name that points elsewhere, verifies nothing."""
    verdict = judge(ONE, handle, said)
    assert verdict.status is standing
    assert verdict.owner == (TWO if standing is HandleStatus.ELSEWHERE else None)


def test_names_that_cannot_be_owned_are_not_looked_up() -> None:
    assert is_resolvable("a.bsky.social", own_network=False)
    assert not is_resolvable("a.TEST", own_network=False)
    assert is_resolvable("a.test", own_network=True)
    for top in ("localhost", "local", "onion", "arpa", "invalid", "internal", "example", "alt"):
        assert not is_resolvable(f"a.{top}", own_network=True)


def test_checks_come_sooner_for_what_is_not_verified_and_never_stop() -> None:
    def wait(standing: HandleStatus, failures: int = 0) -> float:
        return next_check(standing, failures, ONE, recheck=86_400, retry=3600)

    assert 64_800 <= wait(HandleStatus.VERIFIED) <= 86_400
    first, later = wait(HandleStatus.NOT_RESOLVED), [wait(HandleStatus.NOT_RESOLVED, n) for n in range(1, 60)]
    assert 2700 <= first <= 3600
    assert later == sorted(later)
    assert later[-1] == wait(HandleStatus.VERIFIED)
    for silence in (HandleStatus.DNS_SILENT, HandleStatus.WEB_SILENT, HandleStatus.DIRECTORY_SILENT):
        assert wait(silence) < first / 10
    assert next_check(HandleStatus.VERIFIED, 0, TWO, recheck=86_400, retry=3600) != wait(
        HandleStatus.VERIFIED
    )  # spread
