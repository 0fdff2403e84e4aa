"""Where the simulated servers listen: loopback ports. Tests give the network another place, without sockets."""

import socket
from typing import Protocol

from aiohttp import web

from simulator.servers.dns import NameServer

HOST = "127.0.0.1"


class Listener(Protocol):
    """Makes servers reachable."""

    async def serve(self, application: web.Application) -> str:
        """Start serving the application. Returns its URL."""

    async def serve_names(self, server: NameServer) -> str:
        """Start a DNS server. Returns `HOST:PORT`."""

    async def close(self) -> None:
        """Stop all servers."""


def bound(port: int) -> socket.socket:
    """A socket that is bound to a loopback port; 0 means any free port."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    return listener


class Loopback:
    """Consecutive ports from `first_port`; 0 means any free ports."""

    def __init__(self, first_port: int) -> None:
        self._next_port = first_port
        self._runners: list[web.AppRunner] = []
        self._names: list[NameServer] = []

    async def serve(self, application: web.Application) -> str:
        listener = bound(self._next_port)
        if self._next_port:
            self._next_port += 1
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.SockSite(runner, listener, backlog=1024).start()
        self._runners.append(runner)
        return f"http://{HOST}:{listener.getsockname()[1]}"

    async def serve_names(self, server: NameServer) -> str:
        self._names.append(server)
        return await server.listen(HOST, self._next_port)

    async def close(self) -> None:
        for names in self._names:
            names.close()
        for runner in self._runners:
            await runner.cleanup()
