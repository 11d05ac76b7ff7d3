"""Asking the hub of models over the network: with which environment, and what goes wrong, in words.

Owns the sentences that name what is wrong: the token, the mirror, the proxy, the certificates, the
disk. What is asked, and what is done with it, others know.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from chatcache.errors import ChatcacheError, NotFoundError, UnavailableError
from chatcache.formatting import one_line, shorten
from chatcache.network import (
    causes_of,
    check_environment,
    connection_words,
    mend_environment,
    proxy_for,
)

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
ENDPOINT = "HF_ENDPOINT"
_MAX_WORDS = 200
# A request that got no answer, by the names that its library has for that.
_NOT_REACHED = (
    "ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "WriteError", "ProxyError",
    "RemoteProtocolError", "PoolTimeout", "UnsupportedProtocol", "ConnectionError",
)  # fmt: skip


@contextlib.contextmanager
def asking_hub(repo_id: str) -> Iterator[None]:
    """Ask the hub for a model; whatever goes wrong becomes a ChatcacheError that says it."""
    _check_endpoint()
    _check_token()
    check_environment()
    mend_environment()
    try:
        yield
    except ChatcacheError:
        raise
    except Exception as error:
        raise _in_words(error, repo_id) from error


def _in_words(error: Exception, repo_id: str) -> ChatcacheError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes = causes_of(error)
    names = {type(cause).__name__ for cause in causes}
    status = next((code for cause in causes if (code := _status(cause))), None)
    if status == 401 and (origin := _token_origin()):
        return UnavailableError(
            f"The hub does not accept the token of {origin} (401).",
            f"Make a new one, or take it away: public models need none. {_drop_token(origin)}",
        )
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return UnavailableError(
            f"The model {repo_id!r} may be downloaded only after its terms are accepted.",
            f"Accept them at {HUB}/{repo_id}, then run 'hf auth login'.",
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return NotFoundError(
            f"Hugging Face has no model {repo_id!r} that you may see.",
            "Check the spelling; for a private model run 'hf auth login'.",
        )
    if status is not None:
        return _refused(status, error, repo_id)
    if names & set(_NOT_REACHED):
        return _not_reached(error, "ProxyError" in names)
    if (failed := _of_the_disk(causes)) is not None:
        return UnavailableError(
            f"The model {repo_id!r} cannot be kept: {failed.strerror or failed}"
            f"{f': {failed.filename}' if failed.filename else ''}.",
            "Check the free space and the rights there; HF_HOME names another place.",
        )
    if isinstance(error, OSError | RuntimeError):
        return UnavailableError(
            f"The model {repo_id!r} cannot be downloaded: {_first_line(error)}.",
            _where("Check the network and the free space, or use --model builtin."),
        )
    log.info("the hub answers in a way that is not understood", exc_info=error)
    return UnavailableError(
        f"{_endpoint()} does not answer as a hub of models ({type(error).__name__}).",
        _where("Try again later, or use --model builtin."),
    )


def _refused(status: int, error: Exception, repo_id: str) -> ChatcacheError:
    """The hub, or something on the way to it, said no."""
    response = next((r for c in causes_of(error) if (r := getattr(c, "response", None))), None)
    says = shorten(_first_line(error), _MAX_WORDS)
    if status == 407:
        return _proxy_refused("it wants a user and a password (407)")
    if "html" in str(getattr(response, "headers", {}).get("content-type", "")):
        return UnavailableError(
            f"{_endpoint()} refused the download of {repo_id!r} ({status}) with a web page.",
            _where("Such pages come from a firewall or a proxy on the way: ask whoever runs it."),
        )
    if status == 401:
        return UnavailableError(
            f"{_endpoint()} wants a token for {repo_id!r} (401).",
            _where("Check the spelling; for a private model run 'hf auth login'."),
        )
    hint = "It has enough of requests: wait, or run 'hf auth login'." if status == 429 else (
        "Try again in a while, or use --model builtin."
    )  # fmt: skip
    return UnavailableError(
        f"{_endpoint()} refused the download of {repo_id!r} ({status}): {says}.", _where(hint)
    )


def _not_reached(error: Exception, is_at_proxy: bool) -> ChatcacheError:
    words = connection_words(error)
    is_proxied = proxy_for(_address()) is not None
    if is_at_proxy or (is_proxied and "certificate" not in words):
        return _proxy_refused(words)
    return UnavailableError(
        f"{_endpoint()} cannot be reached: {words}.",
        _where(
            "SSL_CERT_FILE names certificates of your own."
            if "certificate" in words
            else "Check the network, or use --model builtin."
        ),
    )


def _proxy_refused(words: str) -> ChatcacheError:
    proxy = proxy_for(_address())
    if proxy is None:
        return UnavailableError(f"{_endpoint()} cannot be reached: {words}.", _where(""))
    return UnavailableError(
        f"The proxy of {proxy.origin} ({proxy.host}) does not lead to the hub: {words}.",
        f"Set {proxy.origin} right, unset it, or have NO_PROXY name the host of the hub.",
    )


def _check_endpoint() -> None:
    parts = urlsplit(_address())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnavailableError(
            f"${ENDPOINT} is no address of a hub: {_address()}.",
            f"Write it like {HUB}, or unset it: unset {ENDPOINT}",
        )


def _check_token() -> None:
    for name in TOKENS:
        token = os.environ.get(name, "").strip()
        if not (token.isascii() and token.isprintable()):
            raise UnavailableError(
                f"${name} holds characters that no token has.",
                f"Set it again, or unset it: unset {name}",
            )


def _address() -> str:
    return os.environ.get(ENDPOINT, "").strip() or HUB


def _endpoint() -> str:
    """The hub as a sentence begins with it."""
    address = one_line(_address())
    return f"The hub of ${ENDPOINT} ({address})" if address != HUB else f"The hub ({address})"


def _where(hint: str) -> str:
    """What to do; where the hub is a mirror, that may be it."""
    if _address() == HUB:
        return hint
    return f"Set ${ENDPOINT} right, or unset it: unset {ENDPOINT}. {hint}".strip()


def _token_origin() -> str:
    """Where the token is from that is sent along; "" where there is none."""
    from huggingface_hub import get_token

    named = next((name for name in TOKENS if os.environ.get(name, "").strip()), None)
    if named is not None:
        return f"${named}"
    return "`hf auth login`" if get_token() else ""


def _drop_token(origin: str) -> str:
    return f"unset {origin[1:]}" if origin.startswith("$") else "hf auth logout"


def _status(error: BaseException) -> int | None:
    code: Any = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _of_the_disk(causes: list[BaseException]) -> OSError | None:
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in numbers:
            return cause
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    says_enough = isinstance(error, OSError | RuntimeError)
    words = one_line(lines[0]).rstrip(".") if lines else ""
    return words if words and says_enough else f"{kind}: {words}" if words else kind
