"""HTTP with one server: its list of models, and answers as a stream of JSON.

Owns the connection, the timeouts, the key's header, and by which way the server is asked.
Redirects are not followed: the key and the messages go to the host of the profile, or nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, NamedTuple

import httpx2

from chatcache import __version__
from chatcache.backends.remote.answer import DONE
from chatcache.backends.remote.failures import CONNECT_SECONDS, malformed, network_error
from chatcache.backends.remote.listing import ServerModel, read_models
from chatcache.backends.remote.refusal import RefusedError, read_refusal, refusal_in_stream
from chatcache.backends.remote.stream_reader import StreamPiece, StreamReader
from chatcache.errors import UnavailableError
from chatcache.formatting import one_line
from chatcache.network import check_certificates, proxy_for
from chatcache.remotes import ENDPOINT, RemoteProfile

LIST_SECONDS = 15.0
WRITE_SECONDS = 60.0
# After the last piece the server ends the stream; a connection of one that does not is given up.
END_SECONDS = 0.25
MAX_EVENT_BYTES = 16 << 20
MAX_BODY_BYTES = 16 << 20


class Arrived(NamedTuple):
    """A piece of an answer, and when it came (a monotonic clock, in seconds)."""

    at: float
    chunk: dict[str, Any]


class ServerClient:
    """One server. To be used in one event loop; errors are ChatcacheErrors or RefusedError."""

    def __init__(self, profile: RemoteProfile, key: str | None) -> None:
        """Raises UnavailableError that names a variable of the environment that is wrong."""
        self._profile = profile
        self.proxy = proxy_for(profile.api_url)
        headers = {"User-Agent": f"chatcache/{__version__}"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        uses_tls = profile.is_encrypted or (self.proxy is not None and self.proxy.is_encrypted)
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(
                profile.timeout, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=CONNECT_SECONDS
            ),
            follow_redirects=False,
            # What the environment says is read here; a password in ~/.netrc is for others.
            trust_env=False,
            proxy=None if self.proxy is None else self.proxy.url,
            verify=_trusted() if uses_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[ServerModel]:
        """What the server offers. Raises RefusedError also where it has no such list."""
        url = f"{self._profile.api_url}/models"
        timeout = httpx2.Timeout(LIST_SECONDS, connect=CONNECT_SECONDS)
        with self._in_words():
            async with self._http.stream("GET", url, timeout=timeout) as response:
                body = await self._whole(response)
                if not response.is_success:
                    raise RefusedError(read_refusal(response.status_code, response.headers, body))
        return read_models(self._json(body, response))

    async def answer(self, body: dict[str, Any]) -> AsyncGenerator[Arrived, None]:
        """The pieces of an answer as they come. Raises RefusedError when there is none."""
        url = f"{self._profile.api_url}{ENDPOINT}"
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # what packs a stream holds it back
        }
        with self._in_words():
            async with self._http.stream("POST", url, content=content, headers=headers) as response:
                if not response.is_success:
                    told = await self._whole(response)
                    raise RefusedError(read_refusal(response.status_code, response.headers, told))
                async for arrived in self._pieces(response):
                    yield arrived

    async def _pieces(self, response: httpx2.Response) -> AsyncIterator[Arrived]:
        """What the bytes say, whatever the server calls them."""
        reader = StreamReader(MAX_EVENT_BYTES, MAX_BODY_BYTES)
        parts = aiter(response.aiter_bytes())
        try:
            async for part in parts:
                for piece in reader.push(part):
                    if piece.kind == "done":
                        await _read_out(parts)
                    yield self._arrived(piece, response)
                    if piece.kind == "done":
                        return
        except (httpx2.TransportError, httpx2.DecodingError):
            for piece in reader.finish():  # what came before it broke off
                yield self._arrived(piece, response)
            raise
        for piece in reader.finish():
            yield self._arrived(piece, response)

    def _arrived(self, piece: StreamPiece, response: httpx2.Response) -> Arrived:
        if piece.kind == "error":
            raise RefusedError(refusal_in_stream(piece.content))
        if piece.kind == "broken":
            raise malformed(self._profile, piece.content)
        if piece.kind == "foreign":
            raise self._foreign(response)
        return Arrived(time.monotonic(), piece.content if piece.kind == "chunk" else {DONE: True})

    async def _whole(self, response: httpx2.Response) -> bytes:
        """The body, as far as any sensible one goes."""
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise malformed(self._profile, "its answer does not end")
        return bytes(body)

    def _json(self, body: bytes, response: httpx2.Response) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._foreign(response) from error

    def _foreign(self, response: httpx2.Response) -> UnavailableError:
        kind = response.headers.get("content-type", "") or "something without a type"
        return malformed(self._profile, f"it sent {one_line(kind)}")

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.TransportError, httpx2.DecodingError, httpx2.InvalidURL) as error:
            raise network_error(error, self._profile, self.proxy) from error


async def _read_out(parts: AsyncIterator[bytes]) -> None:
    """Read to the end, so that the connection serves the next turn, too."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(END_SECONDS):
            async for _ in parts:
                pass


def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted. Raises UnavailableError that names a wrong variable."""
    check_certificates()
    return httpx2.create_ssl_context()
