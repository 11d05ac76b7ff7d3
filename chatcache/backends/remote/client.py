"""HTTP with one server: its list of models, and answers as a stream of JSON.

Owns the connection, the timeouts, the key's header, and what failures of the network mean in words.
Redirects are not followed: the key and the messages go to the host of the profile, or nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import httpx2

from chatcache import __version__
from chatcache.backends.remote.answer import DONE
from chatcache.backends.remote.listing import ServerModel, read_models
from chatcache.backends.remote.refusal import RefusedError, read_refusal, refusal_in_stream
from chatcache.errors import UnavailableError
from chatcache.formatting import duration, one_line
from chatcache.remotes import ENDPOINT, RemoteProfile

CONNECT_SECONDS = 10.0
LIST_SECONDS = 15.0
WRITE_SECONDS = 60.0
# After the last piece the server ends the stream; a connection of one that does not is given up.
END_SECONDS = 0.25
MAX_EVENT_BYTES = 16 << 20
MAX_BODY_BYTES = 16 << 20


class SilentServerError(UnavailableError):
    """The server is there, and says nothing: it may be at work for somebody else."""


class Arrived(NamedTuple):
    """A piece of an answer, and when it came (a monotonic clock, in seconds)."""

    at: float
    chunk: dict[str, Any]


class ServerClient:
    """One server. To be used in one event loop; errors are ChatcacheErrors or RefusedError."""

    def __init__(self, profile: RemoteProfile, key: str | None) -> None:
        self._profile = profile
        headers = {"User-Agent": f"chatcache/{__version__}"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(
                profile.timeout, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=CONNECT_SECONDS
            ),
            follow_redirects=False,
            # A proxy of the environment is for other machines, its certificates are for all.
            trust_env=not profile.is_loopback,
            verify=httpx2.create_ssl_context(),
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
                if response.status_code != 200:
                    raise RefusedError(read_refusal(response.status_code, response.headers, body))
        return read_models(self._json(body, response))

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[Arrived]:
        """The pieces of an answer as they come. Raises RefusedError when there is none."""
        url = f"{self._profile.api_url}{ENDPOINT}"
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        with self._in_words():
            async with self._http.stream("POST", url, content=content, headers=headers) as response:
                if response.status_code != 200:
                    told = await self._whole(response)
                    raise RefusedError(read_refusal(response.status_code, response.headers, told))
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind == "text/event-stream":
                    async for arrived in self._events(response):
                        yield arrived
                else:  # some servers do not stream
                    whole = self._arrived(self._json(await self._whole(response), response))
                    if "choices" not in whole.chunk:
                        raise self._malformed("its answer has no choices")
                    yield whole
                    yield Arrived(time.monotonic(), {DONE: True})

    async def _events(self, response: httpx2.Response) -> AsyncIterator[Arrived]:
        events = aiter(httpx2.EventSource(response, max_event_size=MAX_EVENT_BYTES))
        async for event in events:
            if event.data.strip() == DONE:
                # Read to the end, so that the connection serves the next turn, too.
                with contextlib.suppress(TimeoutError, httpx2.HTTPError):
                    async with asyncio.timeout(END_SECONDS):
                        async for _ in events:
                            pass
                yield Arrived(time.monotonic(), {DONE: True})
                return
            if not event.data:
                continue
            try:
                chunk = json.loads(event.data)
            except (ValueError, RecursionError) as error:
                raise self._malformed("a piece of the answer is no JSON") from error
            if event.event == "error" and "error" not in chunk:
                chunk = {"error": chunk}
            yield self._arrived(chunk)

    def _arrived(self, chunk: Any) -> Arrived:
        if not isinstance(chunk, dict):
            raise self._malformed("a piece of the answer is no object")
        if chunk.get("error"):
            raise RefusedError(refusal_in_stream(chunk))
        return Arrived(time.monotonic(), chunk)

    async def _whole(self, response: httpx2.Response) -> bytes:
        """The body, as far as any sensible one goes."""
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise self._malformed("its answer does not end")
        return bytes(body)

    def _json(self, body: bytes, response: httpx2.Response) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "") or "something without a type"
            raise self._malformed(f"it sent {one_line(kind)}") from error

    def _malformed(self, what: str) -> UnavailableError:
        return UnavailableError(
            f"{self._profile.host} does not speak as an OpenAI-compatible server: {what}.",
            f"Check remote.{self._profile.name}.base_url (often it ends in /v1).",
        )

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except httpx2.SSEError as error:
            raise self._malformed("a line of it is far too long") from error
        except (httpx2.TransportError, httpx2.DecodingError, httpx2.InvalidURL) as error:
            raise network_error(error, self._profile) from error


def network_error(error: Exception, profile: RemoteProfile) -> UnavailableError:
    """A failure of the network in words: who, what, and what to do."""
    host = profile.host
    is_https = profile.is_encrypted
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UnavailableError(
                f"The certificate of {host} cannot be trusted: {cause.verify_message}.",
                "Check the address; SSL_CERT_FILE names certificates of your own.",
            )
        if isinstance(cause, ssl.SSLError) and is_https:
            return UnavailableError(
                f"{host} does not speak TLS as it should: {one_line(str(cause.reason or cause))}.",
                "A server without TLS has an address that begins with http://.",
            )
        if isinstance(cause, socket.gaierror):
            return UnavailableError(
                f"There is no host {profile.hostname!r}, or no network.", _check(profile)
            )
        if isinstance(cause, ConnectionRefusedError):
            return UnavailableError(
                f"Nothing listens at {host}.", f"Start the server. {_check(profile)}"
            )
    if isinstance(error, httpx2.ConnectTimeout):
        after = duration(1000 * CONNECT_SECONDS)
        return UnavailableError(f"{host} cannot be reached within {after}.", _check(profile))
    if isinstance(error, httpx2.ReadTimeout):
        return SilentServerError(
            f"{host} was silent for too long.",
            f"remote.{profile.name}.timeout ({profile.timeout:,} s) says how long it may be.",
        )
    if isinstance(error, httpx2.ConnectError):
        return UnavailableError(f"{host} cannot be reached: {_last_words(error)}.", _check(profile))
    return UnavailableError(
        f"The connection to {host} broke off: {_last_words(error)}.", "Try again."
    )


def _check(profile: RemoteProfile) -> str:
    return f"Check remote.{profile.name}.base_url ({profile.base_url})."


def _causes(error: BaseException) -> list[BaseException]:
    """The error and all behind it; the libraries between wrap what the system said."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += [one.__cause__, one.__context__]
    return found


def _last_words(error: Exception) -> str:
    """What the system said, else what the library says."""
    said = [
        cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror
    ]
    words = said[0] if said else str(error) or type(error).__name__
    return one_line(words).rstrip(".")
