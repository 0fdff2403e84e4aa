"""The resolver against a PLC directory of the test's own and the real identity table."""

import asyncio
from collections.abc import Callable

import pytest

from connectors.http.client import open_session
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from protocol.did_document import ResolvedIdentity, document_url
from schemas.settings import Settings, load
from tests.identity.resolver_directory import DID, MANY, Directory, run


def test_many_callers_ask_once_and_the_answer_survives_a_restart(database: str) -> None:
    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.wait = 0.1
        first = resolver()
        answers = await asyncio.gather(*(first.resolve(DID) for _ in range(50)))
        assert {(a.pds, a.handle) for a in answers} == {("https://one.example", "a.example")}
        assert (await resolver().resolve(DID)).pds == "https://one.example"
        assert directory.asked == [DID]

    run(database, body)


def test_fresh_passes_over_the_caches(database: str) -> None:
    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver()
        await one.resolve(DID)
        directory.pds = "https://two.example"
        assert (await one.resolve(DID)).pds == "https://one.example"
        assert (await one.resolve(DID, fresh=True)).pds == "https://two.example"
        assert (await one.resolve(DID)).pds == "https://two.example"

    run(database, body)


def test_the_newest_of_two_identities_of_a_did_is_stored_in_one_batch(database: str) -> None:
    """One statement stores a batch, and may not name a row twice."""

    async def body(_: Directory, resolver: Callable[..., Resolver]) -> None:
        one, (other, *_) = resolver(), MANY
        stored = [
            ResolvedIdentity(did, pds, None, None, None, None) for did, pds in [(DID, "a"), (other, "b"), (DID, "c")]
        ]
        await asyncio.gather(*map(one.store, stored))
        assert {did: row.pds for did, (row, _) in (await one.stored([DID, other])).items()} == {DID: "c", other: "b"}

    run(database, body)


def test_a_directory_that_is_down_is_not_an_unknown_did(database: str) -> None:
    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.status = 503
        with pytest.raises(IdentityUnreachable) as raised:
            await resolver().resolve(DID)
        assert (raised.value.retry_after, raised.value.throttled) == (9, True)
        nobody = resolver(plc="http://127.0.0.1:1")
        with pytest.raises(IdentityUnreachable):
            await nobody.resolve(DID)

    run(database, body)


@pytest.mark.parametrize(
    ("status", "body", "raised", "gone"),
    [
        (404, '{"message": "DID not registered"}', IdentityNotFound, False),
        (410, '{"message": "DID not available"}', IdentityNotFound, True),
        (404, "<html>no such page</html>", IdentityUnreachable, None),
        (404, "[]", IdentityUnreachable, None),
        (410, "", IdentityUnreachable, None),
        (200, "<html>hello</html>", IdentityUnreachable, None),
        (200, '{"id": "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"}', IdentityUnreachable, None),
    ],
)
def test_only_the_directory_itself_decides_that_a_did_does_not_exist(
    database: str, status: int, body: str, raised: type[Exception], gone: bool | None
) -> None:
    """G5: a proxy's page, or a mirror's wrong path, made every repo unavailable, and confirmed deletions."""

    async def ask(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.status, directory.body = status, body
        with pytest.raises(raised) as said:
            await resolver().resolve(DID)
        assert getattr(said.value, "gone", None) is gone

    run(database, ask)


@pytest.mark.parametrize(("status", "gone"), [(404, False), (410, True)])
@pytest.mark.parametrize("body", ["DID not registered", "", "<html>" + "x" * 100_000])
def test_a_mirror_s_404_in_plain_text_is_an_answer_where_the_mirror_is_up(
    database: str, status: int, gone: bool, body: str
) -> None:
    """H5: unknown and deleted DIDs had no end, since only JSON was believed."""
    unknown = MANY[0]

    async def ask(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver()
        await one.resolve(DID)
        directory.plain = body
        directory.plain_status = status
        with pytest.raises(IdentityNotFound) as said:
            await one.resolve(unknown)
        assert said.value.gone is gone
        assert directory.asked == [DID, unknown, DID], "it is asked for one that it has"
        directory.status, directory.body = status, body  # and now a proxy answers for it
        with pytest.raises(IdentityUnreachable):
            await one.resolve(MANY[1])

    run(database, ask)


@pytest.mark.parametrize(
    "body", ['{"id": "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"}', "\x80", "[]", "[" * 50_000, '{"id": [[1]]}']
)
def test_another_document_than_the_did_s_is_unusable_where_the_directory_is_up(database: str, body: str) -> None:
    """H5: such a failure is counted, and has an end."""

    async def ask(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver()
        await one.resolve(DID)
        directory.plain, directory.plain_status = body, 200
        with pytest.raises(IdentityUnreachable) as said:
            await one.resolve(MANY[0])
        assert said.value.unusable
        directory.body = body
        with pytest.raises(IdentityUnreachable) as said:
            await one.resolve(MANY[1])
        assert not said.value.unusable, "nothing shows that it is a directory"

    run(database, ask)


def test_many_plain_answers_share_one_probe(database: str) -> None:
    """H5"""

    async def ask(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver()
        await one.resolve(DID)
        directory.status, directory.body = 404, "no"
        answers = await one.resolve_many(MANY[:40], max_age=60)
        assert all(isinstance(answer, IdentityUnreachable) for answer in answers.values())
        assert len(directory.asked) <= 1 + 40 + 3

    run(database, ask)


def test_an_unexpected_answer_for_one_did_affects_no_other(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7, B8: among many it is one that did not answer."""

    async def ask(_: Directory, resolver: Callable[..., Resolver]) -> None:
        def odd(did: str, plc: str) -> str | None:
            if did.startswith("did:web:"):
                raise OverflowError(did)
            return document_url(did, plc)

        monkeypatch.setattr("connectors.identity.resolver.document_url", odd)
        found = await resolver().resolve_many([DID, "did:web:odd.example"], max_age=60.0)
        assert isinstance(found[DID], ResolvedIdentity)
        assert isinstance(found["did:web:odd.example"], IdentityUnreachable)
        with pytest.raises(IdentityUnreachable):
            await resolver().resolve("did:web:odd.example")

    run(database, ask)


def test_an_expired_entry_serves_while_the_directory_is_down(database: str) -> None:
    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        await resolver().resolve(DID)
        directory.status, directory.retry_after = 503, None
        late = resolver(identity_cache_seconds=0.000001)
        assert (await late.resolve(DID)).pds == "https://one.example"
        assert len(directory.asked) == 2
        with pytest.raises(IdentityUnreachable):
            await late.resolve(DID, fresh=True)

    run(database, body)


@pytest.mark.parametrize(
    "did", ["did:plc:zzzzzzzzzzzzzzzzzzzzzzzz", "did:key:zabc", "did:web:a.example:users:b", "nonsense"]
)
def test_what_cannot_be_resolved_is_not_found(database: str, did: str) -> None:
    async def body(_: Directory, resolver: Callable[..., Resolver]) -> None:
        with pytest.raises(IdentityNotFound):
            await resolver().resolve(did)

    run(database, body)


def test_a_did_web_at_a_private_host_is_refused(database: str) -> None:
    """G9"""

    async def body(_: Directory, resolver: Callable[..., Resolver]) -> None:
        guarded = Settings(database=database)
        async with open_session(guarded) as session:
            one = Resolver(guarded, session)
            with pytest.raises(IdentityNotFound, match=r"scheme|private"):
                await one.resolve("did:web:localhost%3A8080")
            with pytest.raises(IdentityNotFound, match="private"):
                await one.resolve("did:web:127.0.0.1%3A8080")
            wrong = Resolver(Settings(database=database, plc="http://127.0.0.1:2582"), session)
            with pytest.raises(IdentityUnreachable, match="SLUICE_PLC"):
                await wrong.resolve(DID)
            await one.close()
            await wrong.close()

    run(database, body)


def test_the_directory_is_a_setting(database: str) -> None:
    """A PLC mirror: whatever the setting names is asked, with or without a slash at its end."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        plc = resolver()._settings.plc
        mirror = resolver(plc=load(plc=plc + "/").plc)
        assert (await mirror.resolve(DID, fresh=True)).did == DID
        assert directory.asked == [DID]

    run(database, body)
