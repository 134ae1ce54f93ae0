"""One port with `/metrics`, `/livez` and `/readyz`, served from threads: it answers when the loop does not."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, MetricsHandler

from outbox.errors import UnusableError
from outbox.health import Check, Findings

PATIENCE = 10.0
"""Seconds that a client gets to say what it wants."""

log = structlog.get_logger()


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away is no failure of ours.
        if not isinstance(error := sys.exception(), OSError):
            log.warning("monitor.failed", error=type(error).__name__)


class _Pages(MetricsHandler):
    server_version, sys_version = "outbox", ""
    timeout = PATIENCE
    checks: dict[str, Check]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            super().do_GET()
        elif path in self.checks:
            self._say(*page(self.checks[path]()))
        else:
            self._say(404, "there are /metrics, /livez and /readyz\n")

    def _say(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def page(findings: Findings) -> tuple[int, str]:
    """Status and text of a page about health: 200 when all is fine, else 503; a line for each thing looked at.

    >>> page({"postgresql": None, "redis": "ConnectionError"})
    (503, 'postgresql: ok\\nredis: ConnectionError\\n')
    """
    status = 503 if any(findings.values()) else 200
    return status, "".join(f"{name}: {wrong or 'ok'}\n" for name, wrong in findings.items())


@contextmanager
def served(host: str, port: int, registry: CollectorRegistry, *, live: Check, ready: Check) -> Iterator[int]:
    """Serve the pages while the context lasts; gives the port, which for 0 is a free one. It is logged.

    Raises `UnusableError` when the address cannot be had.

    >>> with served("127.0.0.1", 9100, registry, live=pulse.findings, ready=servers.findings):
    ...     relay.run()
    """
    pages: type[BaseHTTPRequestHandler] = type(
        "Pages", (_Pages,), {"registry": registry, "checks": {"/livez": live, "/readyz": ready}}
    )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind = type("Server", (_Server,), {"address_family": family})
        server = kind(address, pages)
    except (OSError, OverflowError) as error:
        raise UnusableError(
            f"cannot serve metrics on {host} port {port}: {error}; choose another --metrics-host or --metrics-port"
        ) from None
    with server:
        threading.Thread(target=server.serve_forever, name="outbox monitor", daemon=True).start()
        found: int = server.server_address[1]
        log.info("monitor.listening", host=host, port=found)
        try:
            yield found
        finally:
            server.shutdown()
