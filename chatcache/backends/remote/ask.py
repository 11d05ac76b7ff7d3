"""One question to a server, outside of any chat: which models it has, and how far away it is."""

from __future__ import annotations

import time
from dataclasses import dataclass

from chatcache.backends.remote.client import ServerClient
from chatcache.backends.remote.explanation import explain
from chatcache.backends.remote.listing import ServerModel
from chatcache.backends.remote.loop import EventLoop
from chatcache.backends.remote.refusal import RefusedError
from chatcache.errors import UnavailableError
from chatcache.network import proxy_for
from chatcache.remotes import RemoteModel, check_reach


@dataclass(frozen=True, slots=True)
class ServerReport:
    """`connect_ms`: until the first answer, with the connection; `round_trip_ms`: the one after."""

    models: tuple[ServerModel, ...]
    connect_ms: float
    round_trip_ms: float


def ask_server(
    remote: RemoteModel, *, is_offline: bool = False, limit_seconds: float | None = None
) -> ServerReport:
    """Ask for the models. Raises ChatcacheError that says what is wrong; no message is sent."""
    profile = remote.profile
    check_reach(profile, is_offline=is_offline)
    key = profile.key()
    loop = EventLoop(f"ask-{profile.name}")
    try:
        return loop.submit(_ask(remote, key)).result(limit_seconds)
    except RefusedError as error:
        raise explain(error.refusal, remote, key, proxy=proxy_for(profile.api_url)) from error
    except TimeoutError as error:
        raise UnavailableError(
            f"{profile.host} has not answered within {limit_seconds:g} s.", "Try again."
        ) from error
    finally:
        loop.close()


async def _ask(remote: RemoteModel, key: str | None) -> ServerReport:
    client = ServerClient(remote.profile, key)
    try:
        began = time.monotonic()
        models = await client.models()
        connected = time.monotonic()
        await client.models()
        ended = time.monotonic()
    finally:
        await client.close()
    return ServerReport(tuple(models), 1000 * (connected - began), 1000 * (ended - connected))
