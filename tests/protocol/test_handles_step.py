"""What a domain says of a handle, and what follows from it."""

import pytest

from protocol.handle import Answer, Said, Standing, from_txt, from_well_known, is_resolvable, joined, judge, next_check

ONE, TWO = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
FOUND, OTHER = Said(Answer.FOUND, ONE), Said(Answer.FOUND, TWO)
NOTHING = Said(Answer.NOTHING)
AMBIGUOUS = Said(Answer.AMBIGUOUS)
SILENT, HOST_SILENT = Said(Answer.SILENT), Said(Answer.HOST_SILENT)


@pytest.mark.parametrize(
    ("records", "answer"),
    [
        ([f"did={ONE}"], Answer.FOUND),
        (["v=spf1 -all", f"did={ONE}", f"did={ONE}"], Answer.FOUND),
        ([f"did={ONE}", f"did={TWO}"], Answer.AMBIGUOUS),
        ([f"did={ONE}", "did=nonsense"], Answer.FOUND),
        (["did=", "did=did:plc:\x00", f" did={ONE}", "DID=x"], Answer.NOTHING),
        ([], Answer.NOTHING),
    ],
)
def test_txt_records_name_one_did_or_none(records: list[str], answer: Answer) -> None:
    said = from_txt(records)
    assert (said.answer, said.did) == (answer, ONE if answer is Answer.FOUND else None)


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (200, ONE.encode(), Answer.FOUND),
        (200, b"\n " + ONE.encode() + b"\r\n", Answer.FOUND),
        (200, b"<html>" + ONE.encode(), Answer.NOTHING),
        (200, ONE.encode() + b"\n" + TWO.encode(), Answer.NOTHING),
        (200, b"\xff\xfe", Answer.NOTHING),
        (200, ONE.encode() + b" " * 4000, Answer.NOTHING),
        (404, ONE.encode(), Answer.NOTHING),
        (403, b"", Answer.NOTHING),
        (429, b"", Answer.HOST_SILENT),
        (500, ONE.encode(), Answer.HOST_SILENT),
        (503, b"", Answer.HOST_SILENT),
    ],
)
def test_a_web_host_names_a_did_and_nothing_else(status: int, body: bytes, answer: Answer) -> None:
    assert from_well_known(status, body).answer is answer


@pytest.mark.parametrize(
    ("dns", "web", "expected"),
    [
        (FOUND, None, FOUND),
        (FOUND, OTHER, FOUND),  # DNS goes first
        (AMBIGUOUS, FOUND, AMBIGUOUS),
        (NOTHING, FOUND, FOUND),
        (SILENT, FOUND, FOUND),
        (SILENT, NOTHING, SILENT),
        (SILENT, HOST_SILENT, SILENT),
        (NOTHING, HOST_SILENT, HOST_SILENT),
    ],
)
def test_dns_goes_first_and_silence_is_no_answer(dns: Said, web: Said | None, expected: Said) -> None:
    assert joined(dns, web) == expected


def test_both_ways_nothing_is_a_verdict() -> None:
    assert joined(NOTHING, NOTHING).answer is Answer.NOTHING


@pytest.mark.parametrize(
    ("handle", "said", "standing"),
    [
        ("a.example.com", FOUND, Standing.VERIFIED),
        ("a.example.com", OTHER, Standing.ELSEWHERE),
        ("a.example.com", NOTHING, Standing.NOT_RESOLVED),
        ("a.example.com", AMBIGUOUS, Standing.AMBIGUOUS),
        ("a.example.com", SILENT, Standing.SILENT),
        ("a.example.com", HOST_SILENT, Standing.HOST_SILENT),
        ("handle.invalid", FOUND, Standing.NO_HANDLE),
        (None, None, Standing.NO_HANDLE),
    ],
)
def test_a_handle_is_verified_only_if_both_ways_agree(
    handle: str | None, said: Said | None, standing: Standing
) -> None:
    """A claim of the document alone, or a name that points elsewhere, verifies nothing."""
    verdict = judge(ONE, handle, said)
    assert verdict.standing is standing
    assert verdict.owner == (TWO if standing is Standing.ELSEWHERE else None)


def test_names_that_nobody_can_own_are_not_asked() -> None:
    assert is_resolvable("a.bsky.social", own_network=False)
    assert not is_resolvable("a.TEST", own_network=False)
    assert is_resolvable("a.test", own_network=True)
    for top in ("localhost", "local", "onion", "arpa", "invalid", "internal", "example", "alt"):
        assert not is_resolvable(f"a.{top}", own_network=True)


def test_checks_come_sooner_for_what_is_not_verified_and_never_stop() -> None:
    def wait(standing: Standing, failures: int = 0) -> float:
        return next_check(standing, failures, ONE, recheck=86_400, retry=3600)

    assert 64_800 <= wait(Standing.VERIFIED) <= 86_400
    first, later = wait(Standing.NOT_RESOLVED), [wait(Standing.NOT_RESOLVED, n) for n in range(1, 60)]
    assert 2700 <= first <= 3600
    assert later == sorted(later)
    assert later[-1] == wait(Standing.VERIFIED)
    for silence in (Standing.SILENT, Standing.HOST_SILENT, Standing.DIRECTORY_SILENT):
        assert wait(silence) < first / 10
    assert next_check(Standing.VERIFIED, 0, TWO, recheck=86_400, retry=3600) != wait(Standing.VERIFIED)  # spread
