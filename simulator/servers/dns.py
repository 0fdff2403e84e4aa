"""The network's DNS: a UDP server that answers TXT queries for `_atproto.<handle>` with the DID of the handle's owner."""

import asyncio
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from simulator.faults.faults import Faults
from simulator.network import Network

_PREFIX = "_atproto."


class NameServer(asyncio.DatagramProtocol):
    """Answers `did=…` for handles that `Accounts.owner` knows, NXDOMAIN for other names."""

    def __init__(self, network: Network, faults: Faults) -> None:
        self.network = network
        self.faults = faults
        self._transport: asyncio.DatagramTransport | None = None

    async def listen(self, host: str, port: int) -> str:
        """Start listening. Returns `HOST:PORT`."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        at = transport.get_extra_info("sockname")
        return f"{at[0]}:{at[1]}"

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        if self.faults.fire("dns_silent") or not query.question or self._transport is None:
            return
        self._transport.sendto(self._answer(query).to_wire(), addr)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if self.faults.fire("dns_servfail"):
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        owner = self.network.accounts.owner(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if owner is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.TXT:
            response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "TXT", f'"did={owner.did}"'))
        return response
