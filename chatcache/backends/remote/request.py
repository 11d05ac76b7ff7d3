"""The body of a request: the messages of a path and how to answer them, in the terms of the API.

Owns the names of the fields, and what is left out or renamed for a server that does not know one.
The messages come first and are written the same way each turn: a server's prefix cache works on
what they become.
"""

from __future__ import annotations

from typing import Any

from chatcache.backends.base import TurnRequest
from chatcache.backends.remote.dialect import MAX_TOKENS, Dialect
from chatcache.backends.remote.messages import is_continued, sendable

# In the order of the API; the last three are not OpenAI's, but most servers for open models know
# them. vLLM and SGLang say `repetition_penalty`, llama-server and Ollama `repeat_penalty`.
SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_new_tokens": MAX_TOKENS,
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
STREAM_OPTIONS = "stream_options"
TEMPLATE_OPTIONS = "chat_template_kwargs"
COUNTS = "continuous_usage_stats"
LLAMA_SERVER = "llamacpp"
COUNTING_SERVERS = ("vllm", "sglang")
# For a server that wants a limit of the answer, where nobody has set one.
DEFAULT_LIMIT = 4096


def body_of(
    request: TurnRequest, model: str, dialect: Dialect, *, as_one: bool = False
) -> dict[str, Any]:
    """The request as JSON; what nobody has set is left to the server."""
    body: dict[str, Any] = {
        "model": model,
        "messages": sendable(request, dialect, as_one=as_one),
        "stream": True,
        **_sampling(request, dialect),
    }
    if request.think is not None:
        body[TEMPLATE_OPTIONS] = {"enable_thinking": request.think}
    if is_continued(request) and not as_one:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
        if dialect.continues_without_thinking:
            body[TEMPLATE_OPTIONS] = {"enable_thinking": False}
    if dialect.owner == LLAMA_SERVER:
        body["return_progress"] = True
        if not request.use_cache:
            body["cache_prompt"] = False
    if "stream" not in dialect.unknown:
        body[STREAM_OPTIONS] = {"include_usage": True}
        if dialect.owner in COUNTING_SERVERS:
            body[STREAM_OPTIONS][COUNTS] = True
    return _known(body, dialect.unknown - set(chosen_fields(request, dialect)))


def chosen_fields(request: TurnRequest, dialect: Dialect) -> tuple[str, ...]:
    """The fields that stand for what the user has set."""
    thinks = () if request.think is None else (TEMPLATE_OPTIONS, "enable_thinking")
    return (*_sampling(request, dialect), *thinks)


def _known(body: dict[str, Any], unknown: set[str]) -> dict[str, Any]:
    """The body without the fields that the server does not know, inside others, too."""
    return {
        name: _known(value, unknown) if isinstance(value, dict) else value
        for name, value in body.items()
        if name not in unknown
    }


def _sampling(request: TurnRequest, dialect: Dialect) -> dict[str, Any]:
    fields = dict(SAMPLING_FIELDS)
    if MAX_TOKENS in dialect.unknown:
        fields["max_new_tokens"] = "max_completion_tokens"
    if dialect.owner == LLAMA_SERVER:
        fields["repetition_penalty"] = "repeat_penalty"
    given = {fields[name]: getattr(request.sampling, name) for name in fields}
    if dialect.needs_limit and request.sampling.max_new_tokens is None:
        given[fields["max_new_tokens"]] = DEFAULT_LIMIT
    return {name: value for name, value in given.items() if value is not None}
