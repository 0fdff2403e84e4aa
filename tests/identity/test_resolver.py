"""The resolver against a PLC directory of the test's own and the real identity table."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from connectors.http.client import open_session
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from protocol.did_document import ResolvedIdentity, document_url
from schemas.settings import Settings, load

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
MANY = ["did:plc:" + "abcdefghijklmnop"[n // 16] * 12 + "bcdefghijklmnopq"[n % 16] * 12 for n in range(200)]


class Directory:
    """A PLC directory with one DID, a switch and a count."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.body: str | None = None
        self.pds = "https://one.example"
        self.plain: str | None = None  # its answer for DIDs that it does not have
        self.plain_status = 404
        self.wait = 0.0
        self.retry_after: str | None = "9"
        self.limited: set[str] = set()

    async def answer(self, request: web.Request) -> web.Response:
        did = request.path[1:]
        self.asked.append(did)
        await asyncio.sleep(self.wait)
        if self.body is not None:
            return web.Response(status=self.status, text=self.body)
        status = 429 if did in self.limited else self.status
        if status != 200:
            named = {} if self.retry_after is None else {"Retry-After": self.retry_after}
            return web.Response(status=status, headers=named)
        if did != DID and self.plain is not None:
            return web.Response(status=self.plain_status, text=self.plain)
        if did != DID:
            return web.json_response({"message": f"DID not registered: {did}"}, status=404)
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": self.pds}
        return web.json_response({"id": did, "alsoKnownAs": ["at://A.example"], "service": [service]})


def run(database: str, body: Callable[[Directory, Callable[..., Resolver]], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        directory = Directory()
        app = web.Application()
        app.router.add_get("/{did}", directory.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        plc = f"http://127.0.0.1:{runner.addresses[0][1]}"
        made: list[Resolver] = []
        base = Settings(database=database, plc=plc, allow_private_hosts=True, **settings)
        async with open_session(base) as session:

            def resolver(**changes: Any) -> Resolver:
                made.append(Resolver(base.replaced(**changes), session))
                return made[-1]

            try:
                await body(directory, resolver)
            finally:
                for one in made:
                    await one.close()
                await runner.cleanup()

    asyncio.run(main())


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
def test_only_the_directory_s_own_word_says_that_there_is_no_such_did(
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


def test_one_did_whose_answer_nobody_thought_of_leaves_the_others_alone(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_memory_is_bounded(database: str) -> None:
    """G6"""

    async def body(_: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver(identity_cache_entries=1)
        await one.resolve(DID)
        one._keep((await one.resolve(DID)).__class__("did:plc:b", None, None, None, None, None), 60)
        assert list(one._cache) == ["did:plc:b"]

    run(database, body)


def test_a_did_that_was_not_there_is_not_asked_for_again_for_a_while(database: str) -> None:
    """Negative entries: remembered, forgotten after their time, and at once when an event tells of the DID."""
    nobody = "did:plc:" + "z" * 24

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver(identity_negative_seconds=60.0)
        for _ in range(5):
            with pytest.raises(IdentityNotFound):
                await one.resolve(nobody)
        assert directory.asked == [nobody]
        assert isinstance((await one.resolve_many([nobody], max_age=60))[nobody], IdentityNotFound)
        assert directory.asked == [nobody]
        one.forget(nobody)
        with pytest.raises(IdentityNotFound):
            await one.resolve(nobody)
        assert directory.asked == [nobody, nobody]
        short = resolver(identity_negative_seconds=0.0)
        for _ in range(2):
            with pytest.raises(IdentityNotFound):
                await short.resolve(nobody)
        assert len(directory.asked) == 4

    run(database, body)


def test_requests_are_paced_and_a_directory_that_asks_for_rest_gets_it(database: str) -> None:
    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        paced = resolver(identity_requests_per_second=20.0)
        started = time.monotonic()
        dids = [
            "did:plc:" + str(number).rjust(24, "a").translate(str.maketrans("0189", "bcde")) for number in range(10)
        ]
        answers = await paced.resolve_many(dids, max_age=60)
        assert len(answers) == 10
        assert time.monotonic() - started >= 9 / 20
        directory.status = 429  # it asks for nine seconds
        with pytest.raises(IdentityUnreachable):
            await paced.resolve(DID)
        asked = len(directory.asked)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(paced.resolve(DID), 0.5)
        assert len(directory.asked) == asked

    run(database, body)


@pytest.mark.parametrize("status", [429, 503])
def test_requests_that_wait_for_their_turn_keep_the_rest_that_another_was_told_of(database: str, status: int) -> None:
    """Each of a batch had its moment before the first answer came, and a pause moved only those after it."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.status, directory.retry_after = status, "60"
        one = resolver(identity_requests_per_second=20.0)
        batch = asyncio.create_task(one.resolve_many(MANY, max_age=60))
        async with asyncio.timeout(60):
            while not one.throttled:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        asked = len(directory.asked)
        await asyncio.sleep(1.5)
        assert len(directory.asked) - asked < 10  # of thirty, if some were under way still
        assert not batch.done()
        batch.cancel()

    run(database, body)


def test_what_a_directory_answered_before_it_limits_us_is_kept(database: str) -> None:
    """A batch may wait for minutes then: what was answered is in the table, whenever the process ends."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.limited, directory.retry_after = set(MANY), "3600"
        one = resolver(identity_requests_per_second=20.0)
        batch = asyncio.create_task(one.resolve_many([DID, *MANY], max_age=60))
        async with asyncio.timeout(60):
            while not (one.throttled and await one._stored_many([DID])):
                await asyncio.sleep(0.05)
        assert not batch.done()
        batch.cancel()

    run(database, body)


def test_many_dids_are_one_query_and_only_what_is_missing_is_asked_for(database: str) -> None:
    """Pre-fetch for a backfill: what the table knows costs the directory nothing."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        await resolver().resolve(DID)
        assert directory.asked == [DID]
        other = resolver()
        found = await asyncio.gather(*(other.resolve(DID) for _ in range(20)), other.resolve_many([DID], max_age=60))
        assert {type(answer).__name__ for answer in found} == {"ResolvedIdentity", "dict"}
        assert directory.asked == [DID]

    run(database, body)


def test_the_directory_is_a_setting(database: str) -> None:
    """A PLC mirror: whatever the setting names is asked, with or without a slash at its end."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        plc = resolver()._settings.plc
        mirror = resolver(plc=load(plc=plc + "/").plc)
        assert (await mirror.resolve(DID, fresh=True)).did == DID
        assert directory.asked == [DID]

    run(database, body)
