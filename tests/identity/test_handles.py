"""Handles against a real DNS server, a web host with TLS, the simulated network's directory, and the real table."""

import asyncio
import datetime
import ipaddress
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import dns.message
import dns.rcode
import dns.rrset
import psycopg
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from connectors.identity.handle_checks import HandleChecks, HandleResolver, open_handle_session
from connectors.runtime import metrics
from protocol.handle import DomainAnswer, DomainResult
from schemas.settings import Settings, SettingsError, load
from schemas.sql import queries
from simulator.config import SimulatorConfig
from simulator.faults.faults import Faults
from simulator.network import Network
from simulator.servers.dns import NameServer
from tests.support.simulation import Simulation

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
WAIT_SECONDS = 90.0


class Names(NameServer):
    """The simulated network's DNS server with records of the test's own: name → (type, texts)."""

    def __init__(self) -> None:
        faults = Faults(1)
        super().__init__(Network(SimulatorConfig(repos=0), faults), faults)
        self.records: dict[str, tuple[str, list[str]]] = {}

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        if self.faults.active():
            return super()._answer(query)
        response = dns.message.make_response(query)
        name = query.question[0].name.to_text(omit_final_dot=True)
        if name not in self.records:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response
        kind, texts = self.records[name]
        if dns.rdatatype.from_text(kind) == query.question[0].rdtype:
            response.answer.append(dns.rrset.from_text(query.question[0].name, 1, "IN", kind, *texts))
        return response


def run(body: Callable[[Names, Settings], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        names = Names()
        server = await names.listen("127.0.0.1", 0)
        try:
            await body(names, Settings(handle_dns=server, **{"allow_private_hosts": True, **changes}))
        finally:
            names.close()

    asyncio.run(main())


async def ask(settings: Settings, handle: str) -> DomainAnswer:
    async with open_handle_session(settings) as session:
        return await HandleResolver(settings, session).query(handle)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a slow answer is an answer: the machine may be slower than a host may be."""
    monkeypatch.setattr("connectors.identity.handle_checks.DNS_SECONDS", 60.0)
    monkeypatch.setattr("connectors.identity.handle_checks.WEB_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
def test_dns_names_the_did() -> None:
    async def body(names: Names, settings: Settings) -> None:
        names.records["_atproto.a.example.com"] = ("TXT", ['"v=spf1 -all"', f'"did=" "{DID}"'])
        names.records["_atproto.b.example.com"] = ("TXT", [f'"did={DID}"', '"did=did:web:b.example.com"'])
        assert await ask(settings, "a.example.com") == DomainAnswer(DomainResult.FOUND, DID)
        assert (await ask(settings, "b.example.com")).result is DomainResult.AMBIGUOUS
        assert (await ask(settings, "c.example.com")).result is DomainResult.NOTHING
        assert (await ask(settings, ".".join(["a" * 63] * 3 + ["b" * 55, "com"]))).result is DomainResult.NOTHING

    run(body)


def test_dns_that_fails_is_silence() -> None:
    """An unreachable DNS delays, never rejects."""

    async def body(names: Names, settings: Settings) -> None:
        names.records["_atproto.a.example.com"] = ("TXT", [f'"did={DID}"'])
        names.faults.switch({"dns_servfail": 1.0})
        assert (await ask(settings, "a.example.com")).result is DomainResult.SILENT
        assert names.faults.counts["dns_servfail"] > 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            nowhere = settings.replaced(handle_dns=f"127.0.0.1:{nobody.getsockname()[1]}")
            started = time.monotonic()
            assert (await ask(nowhere, "a.example.com")).result is DomainResult.SILENT
            assert time.monotonic() - started < 60  # DNS for the record and for the host: five seconds each

    run(body)


@pytest.mark.usefixtures("patient")
def test_a_handle_at_a_private_address_is_not_fetched() -> None:
    """G9: data names the host, so the guard judges what DNS says of it."""

    async def body(names: Names, settings: Settings) -> None:
        reached = []

        async def answer(request: web.Request) -> web.Response:
            reached.append(request.path)
            return web.Response(text=DID)

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0"):
            names.records["a.example.com"] = ("A", [address])
            said = await ask(settings, "a.example.com")
            assert said.result is DomainResult.NOTHING
            assert "private" in said.detail
        await runner.cleanup()
        assert reached == []

    run(body, allow_private_hosts=False)


class ToPort(AbstractResolver):
    """Every name is at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=self.port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def certificate(folder: Path, name: str) -> Path:
    """A certificate of our own for a name, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
    made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(),
                                   now - datetime.timedelta(days=1), now + datetime.timedelta(days=1), [])  # fmt: skip
    signed = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "host.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    return path


@pytest.mark.usefixtures("patient")
def test_a_web_host_names_the_did_where_dns_does_not(tmp_path: Path) -> None:
    """Over TLS, checked against the handle's own name: another name's certificate proves nothing."""
    pem = certificate(tmp_path, "a.example.com")

    async def body(names: Names, settings: Settings) -> None:
        state = {"status": 200, "text": DID + "\n"}

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=state["status"], text=state["text"])  # type: ignore[arg-type]

        app = web.Application()
        app.router.add_get("/.well-known/atproto-did", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(pem)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
        trusting = ssl.create_default_context(cafile=str(pem))
        connector = aiohttp.TCPConnector(resolver=ToPort(runner.addresses[0][1]), ssl=trusting)
        async with aiohttp.ClientSession(connector=connector) as session:
            resolver = HandleResolver(settings, session)
            assert await resolver.query("a.example.com") == DomainAnswer(DomainResult.FOUND, DID)
            assert (
                await resolver.query("other.example.com")
            ).result is DomainResult.HOST_SILENT  # the certificate is not its own
            for status, text, expected in (
                (200, "x" * 100_000, DomainResult.NOTHING),
                (404, DID, DomainResult.NOTHING),
                (503, DID, DomainResult.HOST_SILENT),
            ):
                state.update(status=status, text=text)
                assert (await resolver.query("a.example.com")).result is expected
        await runner.cleanup()

    run(body)


@pytest.mark.parametrize("value", ["nonsense", "192.0.2.53:dns", "2001:db8::1", "192.0.2.53:"])
def test_a_dns_server_that_is_none_is_one_line(value: str) -> None:
    with pytest.raises(SettingsError, match=r"SLUICE_HANDLE_DNS: .*write it as"):
        load(handle_dns=value)


# --- the table


class Checks:
    """HandleChecks over a simulated network, every account enrolled, and the truth beside it."""

    def __init__(self, database: str, simulation: Simulation, **changes: Any) -> None:
        given: dict[str, Any] = {
            "database": database,
            "plc": simulation.plc,
            "handle_dns": simulation.dns,
            "allow_private_hosts": True,
            "identity_cache_seconds": 0.01,
            "handle_checks_per_second": 500.0,
            "handle_retry_seconds": 60.0,  # where a slow moment passed for silence: a twelfth of that
        }
        self.settings = Settings(**(given | changes))
        self.simulation = simulation
        self.db = psycopg.connect(database, autocommit=True)
        self.checks = HandleChecks(self.settings)

    def __enter__(self) -> "Checks":
        dids = list(self.simulation.state())
        self.db.execute("insert into sluice.handle (did) select unnest(%s::text[])", (dids,))
        return self

    def __exit__(self, *_: object) -> None:
        self.checks.close()
        self.db.close()

    def again(self, *dids: str) -> None:
        """As the index does for an event, but at once."""
        statement = "update sluice.handle set next_check_at = '-infinity', asked = asked + 1"
        self.db.execute(statement + (" where did = any(%s)" if dids else ""), (list(dids),) if dids else None)

    def rows(self) -> dict[str, tuple[str | None, bool]]:
        return {
            did: (handle, ok) for did, handle, ok in self.db.execute("select did, handle, verified from sluice.handle")
        }

    def truth(self) -> dict[str, tuple[str, bool]]:
        return {did: (one.handle, one.handle_verified) for did, one in self.simulation.state().items()}

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            self.checks.step(leads=True)
            assert time.monotonic() < deadline, (self.rows(), self.truth())
            time.sleep(0.05)

    def column(self, name: str, did: str) -> Any:
        row = self.db.execute(f"select {name} from sluice.handle where did = %s", (did,)).fetchone()
        assert row is not None
        return row[0]


def test_switched_contended_and_false_handles(simulator: Any, database: str) -> None:
    """A handle is verified only if both ways agree; whoever the domain names now has it, and nobody else."""
    simulation = simulator(seed=5, repos=30, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        first, second, third, *_ = sorted(checks.rows())
        wanted = checks.rows()[first][0]
        simulation.op("handle", did=third, handle="new.pds0.test")
        simulation.op("handle", did=second, handle=wanted, domain=False)  # claims it, and the domain says no
        checks.again()
        checks.until(lambda: checks.rows() == checks.truth())
        assert checks.rows()[third] == ("new.pds0.test", True)
        assert (checks.rows()[first], checks.rows()[second]) == ((wanted, True), (wanted, False))
        assert checks.column("reason", second) == "elsewhere"
        simulation.op("handle", did=second, handle=wanted)  # now the domain names the newcomer
        checks.again(second)
        checks.until(lambda: checks.rows()[second] == (wanted, True))
        assert checks.rows()[first] == (wanted, False)  # in the same transaction, though nobody asked about it
        assert checks.db.execute(
            "select handle, claimed from sluice.shown_handle where did = %s", (first,)
        ).fetchone() == ("handle.invalid", wanted)
        simulation.set_faults(handle_false={"times": 5}, handle_contended={"times": 10})
        for did in sorted(checks.rows())[:20]:
            simulation.op("handle", did=did)
        assert simulation.fired("handle_false") == 5
        assert simulation.fired("handle_contended") == 10
        assert sum(not ok for _, ok in checks.truth().values()) >= 8
        checks.again()
        checks.until(lambda: checks.rows() == checks.truth())


def test_the_loser_is_found_when_somebody_else_is_asked_about(simulator: Any, database: str) -> None:
    """The domain names an account that claims the handle and has not been checked since: it is checked soon."""
    simulation = simulator(seed=6, repos=3, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        first, second, _ = sorted(checks.rows())
        wanted = checks.rows()[first][0]
        simulation.op("handle", did=second, handle=wanted, domain=False)
        checks.again(second)
        checks.until(lambda: checks.rows()[second] == (wanted, False))
        simulation.op("handle", did=second, handle=wanted)
        checks.again(first)
        checks.until(lambda: checks.rows() == checks.truth())
        assert checks.rows()[second] == (wanted, True)


def test_silence_of_directory_and_dns_changes_nothing(simulator: Any, database: str) -> None:
    """An unreachable directory or DNS delays, never rejects: what was verified stays so, and is asked again soon."""
    simulation = simulator(seed=7, repos=8, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation, handle_retry_seconds=6.0) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        before = checks.rows()
        simulation.set_faults(dns_servfail=1.0)
        checks.again()
        checks.until(lambda: checks.db.execute("select bool_and(reason = 'silent') from sluice.handle").fetchone()[0])
        assert checks.rows() == before
        assert simulation.fired("dns_servfail") > 8
        simulation.set_faults(clear=True, plc_500=1.0)

        def all_silent() -> bool:
            checks.db.execute("truncate sluice.identity")  # no old document at hand, nor one that was just on its way
            left = "select did from sluice.handle where reason is distinct from 'directory_silent'"
            others = [row[0] for row in checks.db.execute(left)]
            if others:
                checks.again(*others)
            return not others

        checks.until(all_silent)
        assert checks.rows() == before
        assert simulation.fired("plc_500") >= 8
        simulation.set_faults(clear=True)
        verified = "select bool_and(reason is null) and min(failures) = 0 from sluice.handle"
        checks.until(lambda: checks.db.execute(verified).fetchone()[0])  # by the schedule, nobody asked


def test_an_event_that_comes_during_a_check_is_not_lost(simulator: Any, database: str) -> None:
    simulation = simulator(seed=8, repos=1, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation) as checks:
        checks.until(lambda: checks.rows() == checks.truth())
        (did,) = checks.rows()
        simulation.set_faults(plc_slow={"seconds": 2})
        checks.db.execute("truncate sluice.identity")
        checks.again(did)
        checks.until(lambda: simulation.fired("plc_slow") == 1)  # the check is under way
        checks.again(did)
        checks.until(lambda: simulation.fired("plc_slow") >= 2)  # and once more, for the event


def test_the_rate_is_bounded_and_events_go_first(simulator: Any, database: str) -> None:
    """The backlog of a whole network does not keep a switched handle waiting."""
    simulation = simulator(seed=9, repos=40, records_per_repo=0, labelers=0, inactive_share=0.0)
    with Checks(database, simulation, handle_checks_per_second=4.0) as checks:
        checks.db.execute("update sluice.handle set next_check_at = now() - interval '1 day'")
        last = max(checks.rows())
        checks.again(last)
        before = metrics.HANDLE_CHECKS.labels("verified")._value.get()
        started = time.monotonic()
        checks.until(lambda: checks.column("verified", last))
        earlier = (
            "select did from sluice.handle where checked_at < (select checked_at from sluice.handle where did = %s)"
        )
        assert checks.db.execute(earlier, (last,)).fetchall() == []
        checks.until(lambda: time.monotonic() - started > 4)
        done = metrics.HANDLE_CHECKS.labels("verified")._value.get() - before
        assert done <= 4.0 * (time.monotonic() - started + 3)


def test_who_was_never_checked_goes_before_who_was(database: str) -> None:
    """Re-checks of a whole network do not keep new accounts at `handle.invalid`; both parts are read from an index."""
    rows = (
        "insert into sluice.handle (did, next_check_at, checked_at)"
        " select %s || n, now() + %s::interval - n * interval '1 s', case when %s then now() - interval '2 d' end"
        " from generate_series(1, %s) n"
    )
    due = queries("handle")["due"]
    with psycopg.connect(database, autocommit=True) as db:
        for kind, when, checked, count in (
            ("again ", "-1 d", True, 20_000),
            ("later ", "1 d", True, 20_000),
            ("new ", "-1 min", False, 30),
            ("soon ", "1 h", False, 5),
            ("asked ", "0", True, 10),
        ):
            db.execute(rows, (kind, when, checked, count))
        db.execute("update sluice.handle set next_check_at = '-infinity' where did like 'asked %'")
        db.execute("analyze sluice.handle")
        for limit, expected in (
            (5, {"asked": 5}),
            (25, {"asked": 10, "new": 15}),
            (100, {"asked": 10, "new": 30, "again": 60}),
        ):
            dids = [row[0] for row in db.execute(due, {"limit": limit})]
            assert Counter(did.split()[0] for did in dids) == expected
        (plan,) = db.execute(b"explain (analyze, format json) " + due, {"limit": 60}).fetchone()[0]
        assert "Seq Scan" not in str(plan)
        skipped = [int(rows) for rows in re.findall(r"'Rows Removed by Filter': (\d+)", str(plan))]
        assert max(skipped, default=0) <= 60


def test_a_handle_has_one_owner_whatever_runs(database: str) -> None:
    """The index refuses a second owner, also to two leaders at once."""
    with psycopg.connect(database, autocommit=True) as db:
        add = "insert into sluice.handle (did, handle, verified, verified_at) values (%s, 'a.b', true, now())"
        db.execute(add, ("did:plc:a",))
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute(add, ("did:plc:b",))
