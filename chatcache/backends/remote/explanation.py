"""What a refusal means to the person who asked: one sentence what was said, one what to do.

Owns these sentences. What was said comes first, what it may mean second; a key in it is taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatcache.backends.remote.failures import proxy_wants_password
from chatcache.backends.remote.refusal import (
    MAX_WORDS,
    Refusal,
    is_about_limit,
    is_about_policy,
    is_context_full,
    refused_field,
)
from chatcache.errors import (
    ChatcacheError,
    ContextFullError,
    NotFoundError,
    UnavailableError,
    did_you_mean,
)
from chatcache.formatting import one_line, plural, shorten
from chatcache.network import ProxySetting
from chatcache.remotes import RemoteModel

MAX_NAMES = 6
# Settings of chatcache by the names that they have in a request.
OPTION_OF_FIELD = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "chat_template_kwargs": "think",
}
_LIMIT = re.compile(
    r"(?:context (?:length|window|size)|limit|maximum)\D{0,40}?(\d[\d,]{2,})", re.IGNORECASE
)
_ASKED = re.compile(
    r"(?:requested|resulted in|has|contains?|prompt is|input|tokens? \(?|prompt \()\D{0,30}?"
    r"(\d[\d,]{2,})(?= ?(?:tokens|input|\)))",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"(\d[\d,]*) in (?:the |your )?(?:messages|prompt|input),? (?:and )?(\d[\d,]*) in",
    re.IGNORECASE,
)
_KEY = re.compile(r"api[ _-]?key|credential|unauthori[sz]ed|authenticat", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient_quota|billing|credit|balance|exceeded your", re.IGNORECASE)


def explain(
    refusal: Refusal,
    remote: RemoteModel,
    key: str | None,
    offered: Sequence[str] = (),
    proxy: ProxySetting | None = None,
    *,
    is_continued: bool = False,
    has_begun: bool = True,
) -> ChatcacheError:
    """The error that a person sees. `offered`: the models that the server has, where it told;
    `has_begun`: some of the answer had come."""
    host = remote.profile.host
    says = _quoted(refusal, key, proxy)
    if 300 <= refusal.status < 400:
        return _sent_on(refusal, remote)
    if refusal.status == 407 and proxy is not None:
        return proxy_wants_password(proxy)
    if is_about_limit(refusal):
        return UnavailableError(
            f"{host} refused max_new_tokens, the limit of the answer ({refusal.status}).{says}",
            "Choose a smaller one: `/set max_new_tokens N`, or `/set max_new_tokens default`. If it"
            " is the conversation that fills the context, fork at an earlier turn.",
        )
    if is_context_full(refusal):
        return _context_full(refusal, host, says)
    if refusal.status in (401, 403):
        return _not_allowed(refusal, remote, says)
    if refusal.status == 404 or "model_not_found" in refusal.code:
        return _not_found(remote, host, says, offered)
    if refusal.status == 429:
        return UnavailableError(
            f"{host} takes no more requests for now (429).{says}", _when(refusal)
        )
    if is_continued and refusal.status in (400, 422, 500):
        return UnavailableError(
            f"{host} does not go on in the middle of an answer ({refusal.status}).{says}",
            "What is written stays. `/regen` answers anew, and a message such as `Go on.` works.",
        )
    if refusal.status >= 500 and refusal.status != 501:
        return UnavailableError(f"{host} failed ({refusal.status}).{says}", _when(refusal))
    if refusal.status == 0:
        return _in_stream(host, says, has_begun)
    name = refused_field(refusal, tuple(OPTION_OF_FIELD))
    if name is not None:
        option = OPTION_OF_FIELD[name]
        return UnavailableError(
            f"{host} does not take {name} ({refusal.status}).{says}",
            f"Leave {option} out: `/set {option} default`, or no --{option.replace('_', '-')}.",
        )
    hint = _what_to_do(refusal, remote)
    if refusal.status in (400, 422) and is_about_policy(refusal):
        hint = "Its filter does not let this pass: say it in other words, or `/undo` it."
    elif refusal.status == 400 and _KEY.search(refusal.message):
        key_name = remote.profile.api_key_env
        hint = f"It may be the key of ${key_name}." if key_name else "It may want a key."
    return UnavailableError(f"{host} refused the request ({refusal.status}).{says}", hint)


def _sent_on(refusal: Refusal, remote: RemoteModel) -> ChatcacheError:
    there = shorten(refusal.location, MAX_WORDS) or "another place"
    return UnavailableError(
        f"{remote.profile.host} sends its callers on to {there}. That is not followed: your key and"
        " your messages would go there.",
        f"If it is right, set remote.{remote.profile.name}.base_url to it.",
    )


def _in_stream(host: str, says: str, has_begun: bool) -> ChatcacheError:
    if has_begun:
        words = f"{host} broke the answer off with an error.{says}"
        return UnavailableError(words, "What was written is kept.")
    return UnavailableError(f"{host} sent an error, and no answer.{says}", "Try again in a while.")


def _what_to_do(refusal: Refusal, remote: RemoteModel) -> str:
    base_url = f"Check remote.{remote.profile.name}.base_url (often it ends in /v1)."
    return {
        402: "The account seems to have no credit left.",
        405: base_url,
        407: "A proxy on the way wants a user and a password.",
        413: "What stands before the server takes no requests of this size: its limit may be"
        " raised, or start a new chat.",
        501: base_url,
    }.get(refusal.status, "See what the server logs.")


def _context_full(refusal: Refusal, host: str, says: str) -> ChatcacheError:
    limit, asked = refusal.num_context, refusal.num_prompt
    if limit is None and (found := _LIMIT.search(refusal.message)):
        limit = int(found[1].replace(",", ""))
    if asked is None:
        numbers = (int(digits.replace(",", "")) for digits in _ASKED.findall(refusal.message))
        asked = next((number for number in numbers if number != limit), None)
    hint = "Start a new chat, or fork at an earlier turn."
    parts = _PARTS.search(refusal.message)
    if limit is not None and asked is not None and parts is not None:
        prompt, answer = (int(number.replace(",", "")) for number in parts.groups())
        words = f"The request has {plural(asked, 'token')} ({prompt:,} are the conversation,"
        words += f" {answer:,} for the answer), the model at {host} takes {limit:,}."
        if prompt < limit:
            hint = f"`/set max_new_tokens {limit - prompt}` leaves room. {hint}"
        return ContextFullError(words, hint, asked, limit)
    if limit is not None and asked is not None:
        words = f"The conversation has {plural(asked, 'token')}, the model at {host} takes"
        return ContextFullError(f"{words} {limit:,}.", hint, asked, limit)
    return ContextFullError(f"The conversation is too long for the model at {host}.{says}", hint)


def _not_allowed(refusal: Refusal, remote: RemoteModel, says: str) -> ChatcacheError:
    profile, status = remote.profile, refusal.status
    variable = f"remote.{profile.name}.api_key_env"
    if status == 403 and refusal.is_page:
        return UnavailableError(
            f"{profile.host} does not let the request in ({status}).{says}",
            "Such pages come from a firewall or a proxy on the way: ask whoever runs it. It may be"
            " the key, too.",
        )
    if profile.api_key_env is None and status == 403:
        return UnavailableError(
            f"{profile.host} does not allow the request ({status}).{says}",
            f"It may want a key: {variable} in config.toml names the variable that has it.",
        )
    if profile.api_key_env is None:
        return UnavailableError(
            f"{profile.host} wants a key, and the profile has none.{says}",
            f"Name the variable that has it: {variable} in config.toml.",
        )
    if status == 403:
        return UnavailableError(
            f"{profile.host} does not allow the request ({status}).{says}",
            f"The key of ${profile.api_key_env} may not be meant for this model, or this place.",
        )
    return UnavailableError(
        f"{profile.host} does not accept the key of ${profile.api_key_env}.{says}",
        "Check it, and that it may use this model.",
    )


def _not_found(remote: RemoteModel, host: str, says: str, offered: Sequence[str]) -> ChatcacheError:
    name = remote.model or ""
    if not name:
        hint = f"Check remote.{remote.profile.name}.base_url (often it ends in /v1)."
        return NotFoundError(f"{host} has no OpenAI-compatible API there (404).{says}", hint)
    if not offered:
        hint = f"Check the name, and remote.{remote.profile.name}.base_url (often it ends in /v1)."
        return NotFoundError(f"{host} has no model {name!r}, or no such API.{says}", hint)
    if name in offered:
        return NotFoundError(f"{host} does not answer with {name!r}.{says}", "Choose another one.")
    return NotFoundError(
        f"{host} has no model {name!r}.", did_you_mean(name, offered) or names_words(offered)
    )


def names_words(offered: Sequence[str]) -> str:
    """`It has a, b, c and 12 more.`"""
    shown = ", ".join(one_line(name) for name in offered[:MAX_NAMES])
    more = len(offered) - MAX_NAMES
    return f"It has {shown} and {more:,} more." if more > 0 else f"It has {shown}."


def _when(refusal: Refusal) -> str:
    if refusal.retry_after is not None and round(refusal.retry_after) > 0:
        return f"It asks to be left alone for {plural(round(refusal.retry_after), 'second')}."
    if _NO_CREDIT.search(f"{refusal.code} {refusal.message}"):
        return "Waiting may not help: look at the credit and the limits of the account."
    return "Try again in a while."


def _quoted(refusal: Refusal, key: str | None, proxy: ProxySetting | None) -> str:
    """` It says: ...`, without the key, which some servers repeat."""
    words = refusal.message.replace(key, "[key]") if key else refusal.message
    words = shorten(words, MAX_WORDS)
    if words:
        words = f": {words}" + ("" if words[-1] in ".!?…" else ".")
    if not refusal.is_page:
        return f" It says{words}" if words else ""
    way = f" by way of the proxy of {proxy.origin}" if proxy is not None else ""
    return f" A web page came{way}{words or '.'}"
