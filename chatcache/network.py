"""What the environment says of the network: proxies, certificates, and which hosts are near.

Owns the names of those variables, so that a wrong one is named in an error instead of failing far
from where it was set, and what failures of the system mean in words. Asks no network, and imports
no HTTP.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from chatcache.errors import UnavailableError
from chatcache.formatting import one_line

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
NEAR_SUFFIXES = (
    ".localhost", ".local", ".lan", ".home", ".internal", ".localdomain", ".home.arpa",
)  # fmt: skip
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carriers and overlay networks, RFC 6598
_SYSTEM = "the system's settings"


@dataclass(frozen=True, slots=True)
class ProxySetting:
    """A proxy, and who named it: `$HTTPS_PROXY`. The address may have a password in it."""

    url: str
    origin: str

    @property
    def host(self) -> str:
        """Host and port, as people may see them."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def is_encrypted(self) -> bool:
        return urlsplit(self.url).scheme == "https"


def is_loopback(hostname: str) -> bool:
    """Is it this machine? Told from the name alone; nothing is looked up."""
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    address = _address(hostname)
    return address is not None and address.is_loopback


def is_near(hostname: str) -> bool:
    """Is it this machine, or one of the local network, to which no proxy leads?"""
    address = _address(hostname)
    if address is None:
        return bool(hostname) and ("." not in hostname or hostname.lower().endswith(NEAR_SUFFIXES))
    is_local = address.is_private or address.is_link_local or address.is_loopback
    return is_local or (address.version == 4 and address in _SHARED)


def proxy_for(url: str, environ: Mapping[str, str] = os.environ) -> ProxySetting | None:
    """The proxy by which a host is asked; None: it is asked directly.

    Raises UnavailableError that names the variable where it makes no sense.
    """
    parts = urlsplit(url)
    hostname = parts.hostname or ""
    if is_near(hostname) or _is_excepted(hostname, parts.port, environ):
        return None
    for variable in _variables(parts.scheme):
        if value := environ.get(variable, "").strip():
            return ProxySetting(_checked(value, f"${variable}"), f"${variable}")
    return _system_proxy(parts.scheme)


def proxy_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables that name a proxy: `$HTTPS_PROXY`."""
    names = dict.fromkeys(name for scheme in ("http", "https") for name in _variables(scheme))
    return [f"${name}" for name in names if environ.get(name, "").strip()]


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UnavailableError that names the first variable which no client could be built with."""
    for origin in proxy_variables(environ):
        _checked(environ[origin[1:]].strip(), origin)
    check_certificates(environ)


def mend_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Write the variables so that libraries which read them do as is done here: a proxy may be
    called `socks://`, and leads to no host that is near."""
    for origin in proxy_variables(environ):
        environ[origin[1:]] = _with_scheme(environ[origin[1:]].strip())
    if is_near(hostname := urlsplit(environ.get("HF_ENDPOINT", "")).hostname or ""):
        known = [environ[name] for name in ("no_proxy", "NO_PROXY") if environ.get(name)]
        names = dict.fromkeys([*",".join(known).split(","), hostname])
        environ["no_proxy"] = environ["NO_PROXY"] = ",".join(filter(None, names))


def check_certificates(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UnavailableError that names the variable whose certificates cannot be read."""
    import ssl  # only who asks a server needs it

    if name := environ.get("SSL_CERT_FILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=name)
        except ssl.SSLError as error:
            raise _wrong("SSL_CERT_FILE", name, "there is no certificate in it") from error
        except OSError as error:
            raise _wrong("SSL_CERT_FILE", name, error.strerror or "it cannot be read") from error
    elif (names := environ.get("SSL_CERT_DIR")) and not any(
        Path(name).is_dir() for name in names.split(os.pathsep)
    ):
        raise _wrong("SSL_CERT_DIR", names, "there is no such directory")
    if name := environ.get("SSLKEYLOGFILE"):
        try:
            with Path(name).open("a"):
                pass
        except OSError as error:
            raise _wrong("SSLKEYLOGFILE", name, error.strerror or "it cannot be written") from error


def causes_of(error: BaseException) -> list[BaseException]:
    """The error and all behind it; the libraries between wrap what the system said."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or cause in found:
            continue
        found.append(cause)
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
        waiting += [cause.__cause__, cause.__context__]
    return found


def last_words(error: BaseException) -> str:
    """What the system said, else what the library says."""
    said = [
        cause.strerror
        for cause in causes_of(error)
        if isinstance(cause, OSError) and cause.strerror
    ]
    words = said[0] if said else str(error) or type(error).__name__
    return one_line(words).rstrip(".")


def connection_words(error: BaseException) -> str:
    """Why no connection came about: `nothing listens there`."""
    import socket
    import ssl

    for cause in causes_of(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate cannot be trusted ({cause.verify_message})"
        if isinstance(cause, socket.gaierror):
            return "there is no such host, or no network"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        if "Timeout" in type(cause).__name__:
            return "it does not answer in time"
    return last_words(error)


def _wrong(variable: str, value: str, says: str) -> UnavailableError:
    return UnavailableError(
        f"${variable} names {value}, which cannot be used: {says}.",
        f"Set it right, or unset it: unset {variable}",
    )


def _variables(scheme: str) -> Iterator[str]:
    for prefix in (scheme, "all"):
        yield f"{prefix}_proxy"
        yield f"{prefix.upper()}_PROXY"


def _with_scheme(value: str) -> str:
    """`host:port` is a proxy that speaks HTTP; desktops write `socks://` for the only SOCKS that
    is still in use."""
    if "://" not in value:
        return f"http://{value}"
    return f"socks5{value[5:]}" if value.lower().startswith("socks://") else value


def _checked(value: str, origin: str) -> str:
    address = _with_scheme(value)
    try:
        parts = urlsplit(address)
        is_address = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address:
        raise UnavailableError(
            f"{origin} is no address of a proxy.", "Write it like http://proxy:3128, or unset it."
        )
    if parts.scheme.lower() not in PROXY_SCHEMES:
        raise UnavailableError(
            f"{origin} names a proxy of the kind {parts.scheme}://, which cannot be used.",
            "Use http://, https:// or socks5://, or unset it.",
        )
    return address


def _is_excepted(hostname: str, port: int | None, environ: Mapping[str, str]) -> bool:
    """Does NO_PROXY name the host: by name, domain, address, network or `*`?"""
    exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    address = _address(hostname)
    for exception in exceptions.lower().replace(" ", ",").split(","):
        name, _, told_port = exception.partition(":") if exception.count(":") == 1 else (
            exception, "", ""
        )  # fmt: skip
        if told_port and told_port != str(port):
            continue
        name = name.removeprefix("*.").lstrip(".")
        if exception == "*" or (name and f".{hostname.lower()}".endswith(f".{name}")):
            return True
        if address is not None and "/" in name and _is_in(address, name):
            return True
    return False


def _is_in(address: ipaddress.IPv4Address | ipaddress.IPv6Address, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _address(hostname: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(hostname.partition("%")[0])
    except ValueError:
        return None


def _system_proxy(scheme: str) -> ProxySetting | None:
    if sys.platform == "darwin":
        from urllib.request import getproxies

        if value := getproxies().get(scheme):
            return ProxySetting(_checked(value, _SYSTEM), _SYSTEM)
    return None
