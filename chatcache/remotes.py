"""Remote profiles: servers with an OpenAI-compatible API, and the model names that mean them.

Owns `[remote.NAME]` of config.toml, its checks, and what `PROFILE:NAME` stands for. The key of a
server is never in here: a profile only names the environment variable that has it. Asks no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from chatcache.checks import checked_table, decimal, described, setting, text, whole
from chatcache.errors import NotFoundError, UnavailableError, UsageError, did_you_mean
from chatcache.model_form import PACKED_FORMS, named_form
from chatcache.network import is_loopback, is_near
from chatcache.sections import MAX_PRICE

SECTION = "remote"
EXAMPLE = """
# Servers: anything with an OpenAI-compatible API (llama-server, vLLM, SGLang, Ollama, a provider).
# A model of one is called PROFILE:NAME, e.g. --model server:qwen3; "server:" is its default model.
# The key itself does not belong here: name the environment variable that has it. Prices are per
# million tokens. The timeout is how many seconds a server may be silent.
# [remote.server]
# base_url = "http://localhost:8080/v1"
# api_key_env = "SERVER_API_KEY"
# model = "qwen3"
# prices = { input = 0.40, cached_input = 0.10, output = 1.60, currency = "USD" }
# timeout = 300
"""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SHORTEST_KEY = 20  # no provider gives out shorter ones; names of variables are in capitals
ENDPOINT = "/chat/completions"
# Pages that people copy the address of, in place of a name.
HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(\w[\w.-]*/\w[\w.-]*)"
    r"(:[\w.-]+)?(?:/(?:tree|blob|resolve|raw|discussions|commits?)\b.*)?/?(?:[?#].*)?",
    re.IGNORECASE,
)
HUB_FILE = re.compile(r"/(?:blob|resolve|raw)/[^/]+/(?:[^?#]*/)?([\w.-]+)\.gguf", re.IGNORECASE)
HUB_SECTIONS = ("datasets", "spaces", "docs", "models", "collections", "papers", "blog", "api")
PORT = re.compile(r"\d{3,5}(?:/.*)?")
OLLAMA_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?ollama\.com/(?:library/)?([\w.-]+(?:/[\w.-]+)?(?::[\w.-]+)?)/?(?:[?#].*)?",
    re.IGNORECASE,
)
# What stands behind the colon of a model of Ollama: `1b`, `latest`, `8b-instruct-q4_K_M`.
OLLAMA_TAG = re.compile(
    r"latest|(?:e?\d+(?:\.\d+)?(?:x\d+)?[bm]|instruct|chat|text|q\d)[\w.-]*", re.IGNORECASE
)
BITS = re.compile(r"\s*\d+[ -]?bits?", re.IGNORECASE)  # behind a colon: what no model is loaded in
OLLAMA = "ollama"
TIMEOUT_SECONDS = 300


def base_url(value: Any) -> str:
    """The address of a server, as it is kept: http or https, without a key in it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be an address in quotes, not {described(value)}")
    address: str = value.strip().rstrip("/")
    wanted = 'must be like "http://localhost:8080/v1"'
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:  # a port that is no number, a broken IPv6
        raise ValueError(wanted) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(wanted)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have a user or a password in it")
    if parts.query or parts.fragment:
        raise ValueError("must end with the path, without ? and #")
    return address


def variable_name(value: Any) -> str:
    """The name of an environment variable. A key in its place is refused, and never repeated."""
    is_name = isinstance(value, str) and VARIABLE.fullmatch(value)
    if not is_name or (len(value) >= SHORTEST_KEY and not value.isupper()):
        raise ValueError("must be the name of an environment variable, not the key itself")
    return str(value)


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost. Without `cached_input`, cached tokens cost what others do."""

    input: float | None = setting(None, decimal(0.0, MAX_PRICE))
    cached_input: float | None = setting(None, decimal(0.0, MAX_PRICE))
    output: float | None = setting(None, decimal(0.0, MAX_PRICE))
    currency: str = setting("USD", text)


@dataclass(frozen=True, slots=True)
class RemoteProfile:
    """A server. `model` is used when `PROFILE:` names none; `timeout` is in seconds of silence."""

    name: str
    base_url: str = setting("", base_url)
    api_key_env: str | None = setting(None, variable_name)
    model: str | None = setting(None, text)
    prices: Prices | None = None
    timeout: int = setting(TIMEOUT_SECONDS, whole(1, 86_400))

    @property
    def api_url(self) -> str:
        """Where the API is: the address with a path, without the name of an endpoint."""
        url = self.base_url.removesuffix(ENDPOINT)
        return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"

    @property
    def host(self) -> str:
        """Host and port, as people read them."""
        return urlsplit(self.base_url).netloc

    @property
    def hostname(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    @property
    def is_encrypted(self) -> bool:
        return urlsplit(self.base_url).scheme == "https"

    @property
    def is_loopback(self) -> bool:
        """Is the server on this machine? Told from the address alone; no name is looked up."""
        return is_loopback(self.hostname)

    def key(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The key, from its environment variable; None when the profile names none.

        Raises UnavailableError when the variable is not set, or cannot be sent.
        """
        if self.api_key_env is None:
            return None
        key = environ.get(self.api_key_env, "").strip()
        if not key:
            raise UnavailableError(
                f"The key of {self.name!r} is not there: ${self.api_key_env} is not set.",
                f"Set it: export {self.api_key_env}=...",
            )
        if not key.isascii() or not key.isprintable():
            raise UnavailableError(
                f"${self.api_key_env} holds characters that no key has.", "Set it again."
            )
        return key

    def values(self) -> Iterator[tuple[str, Any]]:
        """The settings of the profile, prices one by one, as `config show` lists them."""
        for name in KEYS:
            value = getattr(self, name)
            if isinstance(value, Prices):
                for price in PRICE_KEYS:
                    yield f"{name}.{price}", getattr(value, price)
            else:
                yield name, value


KEYS = tuple(key.name for key in fields(RemoteProfile) if key.name != "name")
PRICE_KEYS = tuple(key.name for key in fields(Prices))
TEXT_KEYS = frozenset({"base_url", "api_key_env", "model", "currency"})
Remotes = Mapping[str, RemoteProfile]


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model of a server. `model` is None when the server is to be asked for its only one."""

    profile: RemoteProfile
    model: str | None

    @property
    def name(self) -> str:
        """As it is written after --model."""
        return f"{self.profile.name}:{self.model or ''}"


def read_remotes(tables: Mapping[str, Any], where: str) -> dict[str, RemoteProfile]:
    """The profiles of a config file, by name. `where` names the file.

    Raises UsageError for an unknown key, a wrong value, and a profile without an address.
    """
    return {
        name: _read(name, table, f"{where}: {SECTION}.{name}") for name, table in tables.items()
    }


def _read(name: str, table: Any, place: str) -> RemoteProfile:
    if not NAME.fullmatch(name) or name == "builtin":
        raise UsageError(
            f"{place} is no name for a profile.", "Use letters, digits, dots, - and _."
        )
    if not isinstance(table, dict):
        raise UsageError(f"{place} is no section.", f"Write [{SECTION}.{name}].")
    checks = _checks(RemoteProfile) | {"prices": partial(_prices, place=f"{place}.prices")}
    given = checked_table(table, checks, place)
    if "base_url" not in given:
        raise UsageError(
            f"{place} has no base_url.",
            f"`chatcache config set {SECTION}.{name}.base_url http://localhost:8080/v1` sets it.",
        )
    return RemoteProfile(name, **given)


def _checks(kind: type) -> dict[str, Any]:
    return {key.name: key.metadata.get("check") for key in fields(kind) if key.name != "name"}


def _prices(table: Any, *, place: str) -> Prices:
    if not isinstance(table, dict):
        hint = "Write prices = { input = 0.40, output = 1.60 }, per million tokens."
        raise UsageError(f"{place} must be a table.", hint)
    return Prices(**checked_table(table, _checks(Prices), place))


def check_path(path: Sequence[str]) -> None:
    """Raise UsageError unless NAME.KEY (or NAME.prices.KEY) is a setting of a profile."""
    hint = f"Its settings are called {SECTION}.NAME.KEY, e.g. {SECTION}.server.base_url."
    if len(path) < 2 or not NAME.fullmatch(path[0]):
        raise UsageError(f"{'.'.join([SECTION, *path])!r} is no setting of a profile.", hint)
    known = [key for key in KEYS if key != "prices"] + [f"prices.{key}" for key in PRICE_KEYS]
    name = ".".join(path[1:])
    if name not in known:
        raise UsageError(
            f"{SECTION}.{path[0]} has no setting {name!r}.", did_you_mean(name, known) or hint
        )


def remote_model(name: str, remotes: Remotes) -> RemoteModel | None:
    """What `PROFILE:NAME` means; None when the name is none of a server's.

    Raises NotFoundError with the nearest names for a profile that does not exist, UsageError for
    an address where a profile belongs.
    """
    prefix, colon, model = name.partition(":")
    if colon and prefix in remotes:
        profile = remotes[prefix]
        return RemoteModel(profile, model.strip() or profile.model)
    if os.path.exists(name) or prefix.lower() == OLLAMA:  # noqa: PTH110 - it never raises
        return None  # a model of Ollama is a file of this machine, unless a profile is called so
    if named_form(name).form:
        return None
    if is_address(name):
        raise _address_error(name)
    if not colon or "/" in prefix or name.startswith((".", "~")):
        return None
    if model.startswith(("/", "\\")):
        return None  # a path of Windows
    if PORT.fullmatch(model) and (is_near(prefix) or "." in prefix):
        raise _address_error(f"http://{name}")
    if BITS.fullmatch(model):
        raise NotFoundError(
            f"Models are not loaded in {model.strip()}.", f"There are {' and '.join(PACKED_FORMS)}."
        )
    raise NotFoundError(
        f"There is no remote profile {prefix!r}.", _way_to(prefix, model.strip(), remotes)
    )


def is_address(name: str) -> bool:
    """Is it the address of a server, or of a page about a model, in place of a name?"""
    is_page = hub_model_of(name) is not None or OLLAMA_PAGE.fullmatch(name.strip()) is not None
    return is_page or name.strip().lower().startswith(("http://", "https://"))


def hub_model_of(address: str) -> str | None:
    """The `ORGANISATION/NAME[:QUANT]` in an address of the hub's pages; None when it is none."""
    found = HUB_PAGE.fullmatch(address.strip())
    if found is None or found[1].partition("/")[0] in HUB_SECTIONS:
        return None
    file = HUB_FILE.search(address)
    return found[1] + (f":{file[1]}" if file else found[2] or "")


def _address_error(address: str) -> UsageError:
    if (model := hub_model_of(address)) is not None:
        return UsageError(
            f"{address!r} is the page of a model on the hub.", f"Name the model: --model {model}"
        )
    if found := OLLAMA_PAGE.fullmatch(address.strip()):
        return UsageError(f"{address!r} is the page of a model for Ollama.", _ollama(found[1], {}))
    return UsageError(
        f"{address!r} is the address of a server, and a model is needed.",
        f"`chatcache config set {SECTION}.server.base_url {address}`,"
        " then --model server:NAME, or `server:` for its only model.",
    )


def _way_to(prefix: str, model: str, remotes: Remotes) -> str:
    """What somebody may have meant who named a profile that there is not."""
    if near := did_you_mean(prefix, remotes):
        return near
    if OLLAMA_TAG.fullmatch(model):
        return f"That looks like a model of Ollama. {_ollama(f'{prefix}:{model}', remotes)}"
    if remotes:
        return f"There are {', '.join(remotes)}."
    return f"`chatcache config set {SECTION}.{prefix}.base_url URL` makes one."


def _ollama(model: str, remotes: Remotes) -> str:
    """How a model of Ollama is asked for."""
    ports = (profile for profile in remotes.values() if ":11434" in profile.host)
    profile = remotes.get("ollama") or next(ports, None)
    if profile is not None:
        return f"Say --model {profile.name}:{model}"
    return (
        f"--model {OLLAMA}:{model} loads the file that Ollama has on this machine; to have Ollama"
        f" answer, `chatcache config set {SECTION}.box.base_url http://localhost:11434/v1`, then"
        f" --model box:{model}"
    )


def check_reach(profile: RemoteProfile, *, is_offline: bool) -> None:
    """Raise UnavailableError where the server may not be asked, or its key is missing."""
    if is_offline and not profile.is_loopback:
        raise UnavailableError(
            f"The server {profile.host} is not on this machine, and the network is switched off.",
            "Leave out --offline (or unset HF_HUB_OFFLINE), or use --model builtin.",
        )
    profile.key()
