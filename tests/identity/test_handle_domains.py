"""What a handle's domain answers: a real DNS server, and a web host with TLS."""

import asyncio
import datetime
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import dns.message
import dns.rcode
import dns.rrset
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from connectors.identity.handle_checks import HandleResolver, open_handle_session
from protocol.handle import DomainAnswer, DomainResult
from schemas.settings import Settings, SettingsError, load
from simulator.config import SimulatorConfig
from simulator.faults.faults import Faults
from simulator.network import Network
from simulator.servers.dns import NameServer

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


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
        assert (await ask(settings, "a.example.com")).result is DomainResult.DNS_SILENT
        assert names.faults.counts["dns_servfail"] > 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            nowhere = settings.replaced(handle_dns=f"127.0.0.1:{nobody.getsockname()[1]}")
            started = time.monotonic()
            assert (await ask(nowhere, "a.example.com")).result is DomainResult.DNS_SILENT
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
            ).result is DomainResult.WEB_SILENT  # the certificate is not its own
            for status, text, expected in (
                (200, "x" * 100_000, DomainResult.NOTHING),
                (404, DID, DomainResult.NOTHING),
                (503, DID, DomainResult.WEB_SILENT),
            ):
                state.update(status=status, text=text)
                assert (await resolver.query("a.example.com")).result is expected
        await runner.cleanup()

    run(body)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_sockets_of_many_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has as many handles as the rate allows; a DNS server that does not answer must not cost a socket for each."""
    monkeypatch.setattr("connectors.identity.handle_checks.DNS_SECONDS", 0.2)
    monkeypatch.setattr("connectors.identity.handle_checks.QUERIES_AT_ONCE", 10)

    async def query_all(settings: Settings, most: list[int]) -> None:
        async with open_handle_session(settings) as session:
            resolver = HandleResolver(settings, session)
            queries = asyncio.gather(*(resolver.query(f"a{number}.example.com") for number in range(60)))
            while not queries.done():
                most.append(open_files())
                await asyncio.sleep(0.005)
            assert {one.result for one in queries.result()} == {DomainResult.DNS_SILENT}

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        settings = Settings(handle_dns=f"127.0.0.1:{silent.getsockname()[1]}", allow_private_hosts=True)
        before, most = open_files(), list[int]()
        asyncio.run(query_all(settings, most))
        assert 10 <= max(most) - before <= 10 + 5  # 5: those of the event loop
        assert open_files() == before


def test_no_connection_to_a_handles_host_is_kept() -> None:
    """Each handle is a host of its own: with 50 checks a second, connections kept for 15 seconds would be 750 sockets."""

    async def body(names: Names, settings: Settings) -> None:
        kept: list[bool] = []

        async def answer(request: web.Request) -> web.Response:
            kept.append(request.keep_alive)
            return web.Response(text=DID)

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with open_handle_session(settings) as session:
            for number in range(3):
                names.records[f"a{number}.example.com"] = ("A", ["127.0.0.1"])
                async with session.get(f"http://a{number}.example.com:{runner.addresses[0][1]}/") as answered:
                    assert await answered.text() == DID
        await runner.cleanup()
        assert kept == [False] * 3

    run(body)


@pytest.mark.parametrize("value", ["nonsense", "192.0.2.53:dns", "2001:db8::1", "192.0.2.53:"])
def test_an_invalid_dns_server_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(SettingsError, match=r"SLUICE_HANDLE_DNS: .*write it as"):
        load(handle_dns=value)
