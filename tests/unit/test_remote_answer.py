"""Whatever JSON a server sends: it is read without a failure, and what comes of it can be kept."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.base import ChatMessage, TextDelta, TurnRequest
from chatcache.backends.remote.answer import ServerAnswer
from chatcache.backends.remote.dialect import Dialect
from chatcache.backends.remote.explanation import explain
from chatcache.backends.remote.listing import read_models
from chatcache.backends.remote.refusal import read_refusal
from chatcache.chat.figures import decode, encode, figures_of
from chatcache.frontend import figures
from chatcache.remotes import Prices, RemoteModel, RemoteProfile

REMOTE = RemoteModel(RemoteProfile("p", "http://h", prices=Prices(1.0, 0.5, 2.0)), "m")
KEYS = st.sampled_from(
    [
        *("choices", "delta", "message", "content", "reasoning_content", "finish_reason", "text"),
        *("usage", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"),
        *("timings", "prompt_ms", "cache_n", "prompt_n", "predicted_n", "prompt_progress", "total"),
        *("processed", "cache", "error", "detail", "loc", "msg", "param", "code", "type", "n_ctx"),
        *("id", "data", "meta", "owned_by"),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(
    st.characters(codec=None, exclude_categories=())
)  # fmt: skip
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5)
)
DELTAS = st.builds(lambda delta: {"choices": [{"delta": delta}]}, st.dictionaries(KEYS, JSON))
CHUNKS = st.lists(st.dictionaries(KEYS, JSON) | DELTAS, max_size=6)


@given(CHUNKS, st.booleans())
def test_an_answer_takes_any_json(chunks: list[dict[str, Any]], is_continued: bool) -> None:
    messages = (ChatMessage("user", "hi"), ChatMessage("assistant", "So it begins, and then"))
    last = 2 if is_continued else 1
    request = TurnRequest("t", messages[:last], continue_answer=is_continued)
    answer = ServerAnswer(request, REMOTE, 0.0, Dialect())
    events = [event for at, chunk in enumerate(chunks) for event in answer.take(at + 1.0, chunk)]
    events += answer.finish()
    result = answer.result()
    said = [event for event in events if isinstance(event, TextDelta)]
    assert result.text == "".join(one.text for one in said if not one.is_reasoning)
    assert (result.reasoning or "") == "".join(one.text for one in said if one.is_reasoning)
    result.text.encode()
    kept = encode(figures_of(result))
    json.loads(kept, parse_constant=lambda word: [][0])  # no NaN, no Infinity
    read = decode(kept, result.finish_reason)
    assert read is not None
    assert encode(read) == kept
    assert figures.footer(read)
    usage = result.usage
    if usage.prompt_tokens is not None and usage.cached_tokens is not None:
        assert usage.computed_tokens == usage.prompt_tokens - usage.cached_tokens >= 0


@given(JSON, st.sampled_from([0, 301, 400, 401, 404, 413, 422, 429, 500, 503]))
def test_a_refusal_is_read_from_any_json(content: Any, status: int) -> None:
    refusal = read_refusal(status, {}, json.dumps(content).encode())
    told = explain(refusal, REMOTE, "key", ("m", "n"))
    assert "h" in told.message
    assert "\n" not in told.message
    assert len(told.message) < 500
    f"{told.message} {told.hint}".encode()


@given(JSON)
def test_a_list_of_models_is_read_from_any_json(content: Any) -> None:
    for model in read_models(content):
        assert model.name.encode()
        assert model.max_context_tokens >= 0
