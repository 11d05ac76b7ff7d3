"""The chat in a browser: textual-serve behind a guard, on this machine alone by default.

Owns the page (nothing in it comes from another host) and who may connect: pages of other sites must
not reach the chats through the browser of a person who has it open.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PAGES = Path(__file__).parent
_POLICY = (
    "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:;"
    " style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ChatServer(Server):
    """Runs `command` once for each page that is opened."""

    def __init__(self, command: str, host: str, port: int, public_url: str | None = None) -> None:
        shown = f"[{host}]" if ":" in host else host
        super().__init__(
            command,
            host=host,
            port=port,
            title="chatcache",
            public_url=public_url or f"http://{shown}:{port}",
            templates_path=_PAGES,
        )
        self._hosts = _allowed_hosts(host, self.public_url)

    async def _make_app(self) -> web.Application:
        application = await super()._make_app()
        application.middlewares.append(self._guard)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Refuse other sites (Origin) and other names for this machine (Host)."""
        origin = request.headers.get("Origin")
        names = [urlsplit(f"//{request.host}").hostname]
        names += [urlsplit(origin).hostname] if origin else []
        if any(name not in self._hosts for name in names):
            raise web.HTTPForbidden(text="chatcache: this address is not served.")
        response = await handler(request)
        if not response.prepared:
            response.headers["Content-Security-Policy"] = _POLICY
            response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def on_startup(self, app: web.Application) -> None:
        """Say where it is. Narration goes to stderr."""
        sys.stderr.write(f"The chat is at {self.public_url}. Ctrl+C ends it.\n")
        sys.stderr.flush()


def _allowed_hosts(host: str, public_url: str) -> frozenset[str | None]:
    named = {host, urlsplit(public_url).hostname}
    return frozenset(named | LOOPBACK if host in LOOPBACK else named)
