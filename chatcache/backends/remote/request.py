"""The body of a request: the messages of a path and how to answer them, in the terms of the API.

Owns the names of the fields, and what is left out or renamed for a server that does not know one.
The messages come first and are written the same way each turn: a server's prefix cache works on
what they become.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chatcache.backends.base import TurnRequest
from chatcache.backends.remote.refusal import Refusal, refused_field

# In the order of the API; the last three are not OpenAI's, but most servers for open models know
# them. vLLM and SGLang say `repetition_penalty`, llama-server and Ollama `repeat_penalty`.
SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_new_tokens": "max_tokens",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
# What chatcache adds by itself: a server that refuses one gets the request again without it.
OWN_FIELDS = ("continue_final_message", "add_generation_prompt", "return_progress", "cache_prompt")
STREAM_OPTIONS = "stream_options"
COUNTS = "continuous_usage_stats"
LLAMA_SERVER = "llamacpp"
COUNTING_SERVERS = ("vllm", "sglang")


@dataclass
class Dialect:
    """What has been learned of one server. `owner`: what it says of itself in its list."""

    owner: str = ""
    unknown: set[str] = field(default_factory=set)

    def learn(self, refusal: Refusal) -> bool:
        """Take a refused field into account; True when the request is worth another try."""
        if refused_field(refusal, ("max_tokens",)) and "max_completion_tokens" in refusal.message:
            return self._add("max_tokens")
        name = refused_field(refusal, (COUNTS, *OWN_FIELDS, STREAM_OPTIONS))
        return name is not None and self._add(name)

    def _add(self, name: str) -> bool:
        is_new = name not in self.unknown
        self.unknown.add(name)
        return is_new


def body_of(request: TurnRequest, model: str, dialect: Dialect) -> dict[str, Any]:
    """The request as JSON; what nobody has set is left to the server."""
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(request),
        "stream": True,
        **_sampling(request, dialect),
    }
    if request.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": request.think}
    if is_continued(request):
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if dialect.owner == LLAMA_SERVER:
        body["return_progress"] = True
        if not request.use_cache:
            body["cache_prompt"] = False
    body[STREAM_OPTIONS] = {"include_usage": True}
    if dialect.owner in COUNTING_SERVERS and COUNTS not in dialect.unknown:
        body[STREAM_OPTIONS][COUNTS] = True
    return {name: value for name, value in body.items() if name not in dialect.unknown}


def is_continued(request: TurnRequest) -> bool:
    """Does the model go on in the middle of an answer? One that is all reasoning is begun anew."""
    return request.continue_answer and bool(request.messages[-1].text)


def _messages(request: TurnRequest) -> list[dict[str, str]]:
    """Reasoning is not sent back: templates leave it out of the history."""
    messages = list(request.messages)
    if request.continue_answer and not is_continued(request):
        del messages[-1]
    return [{"role": message.role, "content": message.text} for message in messages]


def _sampling(request: TurnRequest, dialect: Dialect) -> dict[str, Any]:
    fields = dict(SAMPLING_FIELDS)
    if "max_tokens" in dialect.unknown:
        fields["max_new_tokens"] = "max_completion_tokens"
    if dialect.owner == LLAMA_SERVER:
        fields["repetition_penalty"] = "repeat_penalty"
    given = {fields[name]: getattr(request.sampling, name) for name in fields}
    return {name: value for name, value in given.items() if value is not None}
