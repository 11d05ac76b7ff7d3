"""What failures of the network mean, in words: who, what, and what to do.

Owns the errors of connections, of TLS and of proxies; what a server says when it refuses is told
elsewhere. Asks nothing.
"""

from __future__ import annotations

import socket
import ssl

import httpx2

from chatcache.errors import UnavailableError
from chatcache.formatting import duration, one_line
from chatcache.network import ProxySetting, causes_of, connection_words, last_words
from chatcache.remotes import RemoteProfile

CONNECT_SECONDS = 10.0


class SilentServerError(UnavailableError):
    """The server is there, and says nothing: it may be at work for somebody else."""


def malformed(profile: RemoteProfile, what: str) -> UnavailableError:
    """The server answers, and not as it should."""
    return UnavailableError(
        f"{profile.host} does not speak as an OpenAI-compatible server: {what}.",
        f"Check remote.{profile.name}.base_url (often it ends in /v1).",
    )


def network_error(
    error: Exception, profile: RemoteProfile, proxy: ProxySetting | None = None
) -> UnavailableError:
    """A failure of the network in words: who, what, and what to do."""
    if proxy is not None and (told := _proxy_error(error, profile, proxy)) is not None:
        return told
    host = profile.host
    is_https = profile.is_encrypted
    for cause in causes_of(error):
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
        return UnavailableError(f"{host} cannot be reached: {last_words(error)}.", _check(profile))
    return UnavailableError(
        f"The connection to {host} broke off: {last_words(error)}.",
        "Try again; what had been written is kept.",
    )


def _proxy_error(
    error: Exception, profile: RemoteProfile, proxy: ProxySetting
) -> UnavailableError | None:
    """What went wrong on the way to the proxy, or there; None: it was behind it."""
    if isinstance(error, httpx2.ProxyError):
        words = one_line(str(error)).rstrip(".") or "it does not say why"
        if words.startswith("407"):
            return proxy_wants_password(proxy)
        return UnavailableError(
            f"The proxy of {proxy.origin} ({proxy.host}) does not lead to {profile.host}: {words}.",
            _without_proxy(profile, proxy),
        )
    if isinstance(error, httpx2.ConnectTimeout):
        return _no_proxy(profile, proxy, f"not within {duration(1000 * CONNECT_SECONDS)}")
    if not isinstance(error, httpx2.ConnectError):
        return None
    if any(isinstance(cause, ssl.SSLError) for cause in causes_of(error)):
        return None if not proxy.is_encrypted else _no_proxy(profile, proxy, last_words(error))
    return _no_proxy(profile, proxy, connection_words(error))


def proxy_wants_password(proxy: ProxySetting) -> UnavailableError:
    """407: it is the proxy that refuses, not the server."""
    return UnavailableError(
        f"The proxy of {proxy.origin} ({proxy.host}) wants a user and a password (407).",
        f"Write them into {proxy.origin}: http://USER:PASSWORD@{proxy.host}",
    )


def _no_proxy(profile: RemoteProfile, proxy: ProxySetting, why: str) -> UnavailableError:
    return UnavailableError(
        f"The proxy of {proxy.origin} ({proxy.host}) cannot be reached: {why}.",
        _without_proxy(profile, proxy),
    )


def _without_proxy(profile: RemoteProfile, proxy: ProxySetting) -> str:
    return f"Set {proxy.origin} right, unset it, or have NO_PROXY name {profile.hostname}."


def _check(profile: RemoteProfile) -> str:
    return f"Check remote.{profile.name}.base_url ({profile.base_url})."
