"""The remote backend against a server that speaks HTTP for real: turns, figures, stops, fields."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    ChatMessage,
    CostEstimate,
    ModelLoading,
    ModelReady,
    PrefillProgress,
    Prepare,
    SamplingParams,
    TextDelta,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnPrice,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.backends.questions import DescribeModel
from chatcache.backends.remote.backend import RemoteBackend
from chatcache.errors import ChatcacheError, UnavailableError, UsageError
from chatcache.remotes import Prices, RemoteModel, RemoteProfile
from chatcache.token_ids import NO_IDS, TokenIds
from tests.fake_server import FakeServer, Status, Stream, Style, Whole

HELLO = (ChatMessage("system", "Be brief."), ChatMessage("user", "hello there"))
_ids = itertools.count()


def request(*messages: ChatMessage, **given: Any) -> TurnRequest:
    return TurnRequest(f"turn-{next(_ids)}", messages or HELLO, **given)


class Remote:
    """A backend on a server, closed at the end."""

    def __init__(
        self,
        server: FakeServer,
        model: str | None = "tiny",
        lessons: Path | None = None,
        **profile: Any,
    ) -> None:
        self.server = server
        self.profile = RemoteProfile("p", **{"base_url": server.base_url, **profile})
        self.backend = RemoteBackend(RemoteModel(self.profile, model), lessons=lessons)
        self.heard: list[BackendEvent] = []
        self.backend.subscribe(self.heard.append)

    def turn(self, asked: TurnRequest | None = None) -> list[TurnEvent]:
        return list(self.backend.ask(asked or request()))

    def result(self, asked: TurnRequest | None = None) -> TurnResult:
        last = self.turn(asked)[-1]
        assert isinstance(last, TurnFinished), last
        return last.result

    def failure(self, asked: TurnRequest | None = None) -> TurnFailed:
        last = self.turn(asked)[-1]
        assert isinstance(last, TurnFailed), last
        assert isinstance(last.error, ChatcacheError), last.error
        return last


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def remote(server: FakeServer) -> Iterator[Remote]:
    remote = Remote(server)
    yield remote
    remote.backend.close()


# Answers and figures


def test_a_turn_streams_and_says_what_the_server_told(remote: Remote) -> None:
    first, second = remote.turn(), remote.turn()
    planned, *deltas, finished = first
    assert isinstance(planned, TurnPlanned)
    assert (planned.reason, planned.new_ids, planned.prompt_tokens) == ("remote", NO_IDS, 0)
    assert [one.text for one in deltas if isinstance(one, TextDelta)] == [
        "You ", "said: ", "hello ", "there",
    ]  # fmt: skip
    assert isinstance(finished, TurnFinished)
    result = finished.result
    assert (result.text, result.reasoning) == ("You said: hello there", None)
    assert (result.finish_reason, result.answer_ids) == ("stop", NO_IDS)
    assert result.usage == Usage(6, 4, None, None, 0)
    assert (result.timings.ttft_ms or 0) > 0
    assert result.timings.prefill_ms is None
    assert (result.cache.outcome, result.cache.reason) == ("off", "remote")
    assert isinstance(second[-1], TurnFinished)
    usage = second[-1].result.usage
    assert (usage.cached_tokens, usage.computed_tokens) == (5, 1)
    assert second[-1].result.cache.diverged_at == 5
    assert "took 5 of 6 prompt tokens from its own cache" in second[-1].result.cache.detail


@pytest.mark.parametrize(
    ("style", "usage"),
    [
        ("openai", Usage(6, 4, None, None, 0)),
        ("vllm", Usage(6, 4, None, None, None)),
        ("llama", Usage(6, 4, None, None, 0)),
        ("bare", Usage(None, None, None, None, None)),
    ],
)
def test_what_a_server_does_not_tell_stays_unknown(style: Style, usage: Usage) -> None:
    with FakeServer(style) as server:
        remote = Remote(server)
        result = remote.result()
        remote.backend.close()
    assert result.usage == usage
    assert result.timings.prefill_ms == (12.5 if style == "llama" else None)
    assert (result.timings.decode_tokens_per_second is None) is (style == "bare")
    assert result.cache.diverged_at == usage.server_cached_tokens
    assert (result.cache.saved_ms, result.cache.estimated_cold_ttft_ms) == (None, None)


def test_llama_server_tells_how_far_it_has_read() -> None:
    with FakeServer("llama") as server:
        remote = Remote(server)
        events = remote.turn()
        remote.backend.close()
        assert server.chats[0].body["return_progress"] is True
    (progress,) = (event for event in events if isinstance(event, PrefillProgress))
    assert (progress.done, progress.total, progress.cached) == (6, 6, 0)


@pytest.mark.parametrize("style", ["openai", "vllm"])  # reasoning_content, reasoning
def test_reasoning_is_kept_apart(style: Style) -> None:
    with FakeServer(style) as server:
        server.plan(Stream("Yes.", reasoning="is it so"))
        remote = Remote(server)
        result = remote.result()
        remote.backend.close()
    assert (result.reasoning, result.text) == ("is it so", "Yes.")


def test_reasoning_in_tags_is_kept_apart(remote: Remote) -> None:
    remote.server.plan(Stream(["<thi", "nk>\nis it", " so\n</th", "ink>\n\nYes", "."]))
    result = remote.result()
    assert (result.reasoning, result.text) == ("is it so", "Yes.")


@pytest.mark.parametrize(
    ("finish", "ending"), [("length", "length"), ("content_filter", "stop"), (None, "stop")]
)
def test_how_it_ended_is_kept(remote: Remote, finish: str | None, ending: str) -> None:
    remote.server.plan(Stream("So it", finish=finish))
    result = remote.result()
    assert (result.text, result.finish_reason) == ("So it", ending)
    assert ("content filter" in result.cache.detail) is (finish == "content_filter")


def test_a_server_that_does_not_stream_answers_all_the_same(remote: Remote) -> None:
    remote.server.plan(Whole("All at once."))
    result = remote.result()
    assert result.text == "All at once."
    assert result.usage.completion_tokens == 2


def test_odd_chunks_are_no_failure(remote: Remote) -> None:
    chunks: list[Any] = [
        b": a comment that keeps the connection\n\n",
        {"choices": []},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": None, "role": "assistant"}}]},
        {"choices": [{"delta": {"content": [{"type": "text", "text": "Fine"}]}}]},
        {"choices": [{"delta": {"content": "."}}], "usage": None, "timings": "none"},
        {"usage": {"prompt_tokens": "six", "completion_tokens": -1}},
        b"data: " + '{"choices": [{"delta": {"content": " é💡"}}]}'.encode() + b"\r\n\r\n",
    ]
    remote.server.plan(Stream(chunks))
    assert remote.result().text == "Fine. é💡"


def test_a_character_that_comes_in_two_packets_is_whole(remote: Remote) -> None:
    line = 'data: {"choices": [{"delta": {"content": "naïve"}}]}\n\n'.encode()
    cut = line.index("ï".encode()) + 1
    remote.server.plan(Stream([line[:cut], line[cut:]]))
    assert remote.result().text == "naïve"


def test_vllm_counts_on_the_way() -> None:
    with FakeServer("vllm") as server:
        counted = [
            {"choices": [{"delta": {"content": word}}], "usage": {"completion_tokens": number}}
            for number, word in ((2, "one "), (5, "two"))
        ]
        server.plan(Stream(counted, has_usage=False))
        remote = Remote(server)
        deltas = [one for one in remote.turn() if isinstance(one, TextDelta)]
        remote.backend.close()
        assert server.chats[0].body["stream_options"]["continuous_usage_stats"] is True
    assert [one.num_tokens for one in deltas] == [2, 5]


@pytest.mark.parametrize(
    ("prices", "price"),
    [
        (Prices(1.0, 0.5, 2.0, "EUR"), TurnPrice("EUR", 11.5e-6, 2.5e-6)),
        (Prices(1.0, None, 2.0), TurnPrice("USD", 14e-6, 0.0)),
        (Prices(1.0), TurnPrice("USD", None, None)),
        (None, None),
    ],
)
def test_what_a_turn_cost(
    server: FakeServer, prices: Prices | None, price: TurnPrice | None
) -> None:
    remote = Remote(server, prices=prices)
    remote.turn()
    assert remote.result().price == price
    remote.backend.close()


def test_a_cost_that_depends_on_what_nobody_told_is_unknown() -> None:
    with FakeServer("vllm") as server:  # which does not say what was cached
        remote = Remote(server, prices=Prices(1.0, 0.5, 2.0))
        assert remote.result().price == TurnPrice("USD", None, None)
        remote.backend.close()


# What is sent


def test_the_prompt_only_grows_byte_by_byte(remote: Remote) -> None:
    """The messages of a path are written the same way each turn: a server's cache needs that."""
    path = [ChatMessage("system", 'Say "é"\n\tto <all>.')]
    sent = []
    for text in ("one", "two  ", "三"):
        path.append(ChatMessage("user", text))
        answer = remote.result(request(*path)).text
        path.append(ChatMessage("assistant", answer, reasoning="not sent back"))
        raw = remote.server.chats[-1].raw
        sent.append(raw[: raw.index(b'],"stream"')])
    for shorter, longer in itertools.pairwise(sent):
        assert longer.startswith(shorter)
    assert b"not sent back" not in sent[-1]
    assert remote.result(request(*path[:3], ChatMessage("user", "else"))).usage.cached_tokens


def test_sampling_has_the_names_of_the_api(remote: Remote) -> None:
    remote.result()
    assert set(remote.server.chats[0].body) == {"model", "messages", "stream", "stream_options"}
    sampling = SamplingParams(0.5, 0.9, 40, 0.05, 1.1, 7, 99)
    remote.result(request(sampling=sampling, think=False))
    body = remote.server.chats[1].body
    assert {name: body[name] for name in body if name not in ("messages", "stream_options")} == {
        "model": "tiny",
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "max_tokens": 99,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.parametrize("style", ["openai", "llama"])
def test_only_llama_server_lets_its_cache_be_switched_off(style: Style) -> None:
    with FakeServer(style) as server:
        remote = Remote(server)
        remote.result()
        result = remote.result(request(use_cache=False))
        remote.backend.close()
        assert ("cache_prompt" in server.chats[1].body) is (style == "llama")
    assert ("was not switched off" in result.cache.detail) is (style == "openai")


def refused(field: str, more: str = "") -> Status:
    message = f"Unsupported parameter: '{field}' is not supported with this model. {more}"
    return Status(400, {"error": {"message": message, "param": field, "type": "invalid_request"}})


@pytest.mark.parametrize(
    ("refusal", "gone", "there"),
    [
        (refused("max_tokens", "Use 'max_completion_tokens' instead."), "max_tokens",
         "max_completion_tokens"),
        (refused("stream_options"), "stream_options", "stream"),
        (Status(422, {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not"
                                  " permitted", "type": "extra_forbidden"}]}), "stream_options",
         "stream"),
    ],
)  # fmt: skip
def test_a_field_of_our_own_that_is_refused_is_left_out_from_then_on(
    remote: Remote, refusal: Status, gone: str, there: str
) -> None:
    remote.server.plan(refusal)
    asked = request(sampling=SamplingParams(max_new_tokens=5))
    assert remote.result(asked).text == "You said: hello there"
    remote.result(asked)
    assert [gone in one.body for one in remote.server.chats] == [True, False, False]
    assert there in remote.server.chats[-1].body


def test_a_setting_of_the_user_that_is_refused_is_named(remote: Remote) -> None:
    remote.server.plan(refused("top_k"))
    error = remote.failure(request(sampling=SamplingParams(top_k=5))).error
    assert isinstance(error, UnavailableError)
    assert "does not take top_k" in error.message
    assert "/set top_k default" in error.hint
    assert len(remote.server.chats) == 1


# Going on


PARTIAL = (*HELLO, ChatMessage("assistant", "The beginning of an answer"))


@pytest.mark.parametrize(
    "pieces", [" goes on", ["The beginning of", " an answer goes", " on"], [" goes", " on"]]
)
def test_an_answer_goes_on_where_it_stopped(remote: Remote, pieces: Any) -> None:
    remote.server.plan(Stream(pieces))
    result = remote.result(request(*PARTIAL, continue_answer=True))
    assert result.text == " goes on"
    body = remote.server.chats[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": PARTIAL[-1].text}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_server_that_knows_no_continuing_is_asked_without_it(remote: Remote) -> None:
    message = "Unrecognized request arguments: add_generation_prompt, continue_final_message"
    remote.server.plan(
        Status(400, {"error": {"message": message}}), refused("add_generation_prompt")
    )
    remote.server.plan(Stream("The begi"))
    result = remote.result(request(*PARTIAL, continue_answer=True))
    assert result.text == "The begi"  # not a repetition: it ends before that was certain
    assert not {"continue_final_message", "add_generation_prompt"} & set(
        remote.server.chats[-1].body
    )


def test_an_answer_that_is_all_reasoning_is_begun_anew(remote: Remote) -> None:
    messages = (*HELLO, ChatMessage("assistant", "", reasoning="hm"))
    remote.result(request(*messages, continue_answer=True))
    body = remote.server.chats[0].body
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert "continue_final_message" not in body


# Stopping


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (['"\\ud83d"', '"\\udca1 on"'], "💡 on"),
        (['"a\\ud83d"', '"b"'], "a\ufffdb"),
        (['"\\udca1"', '"b"'], "\ufffdb"),
    ],
)
def test_a_character_in_two_pieces_of_json_is_whole(
    remote: Remote, pieces: list[str], text: str
) -> None:
    lines = [f'data: {{"choices": [{{"delta": {{"content": {one}}}}}]}}\n\n' for one in pieces]
    remote.server.plan(Stream([line.encode() for line in lines]))
    assert remote.result().text == text


@pytest.mark.parametrize("number", ["1e400", "NaN", "1" + "0" * 30, "-5", '"many"', "true"])
def test_figures_that_cannot_be_are_no_figures(remote: Remote, number: str) -> None:
    names = ("prompt_tokens", "completion_tokens")
    usage = ", ".join(f'"{name}": {number}' for name in names)
    line = (
        f'data: {{"choices": [], "usage": {{{usage}}}, "timings": {{"prompt_ms": {number}}}}}\n\n'
    )
    remote.server.plan(Stream(["Hi", line.encode()], has_usage=False))
    result = remote.result()
    assert result.usage == Usage(None, None, None, None, None)
    assert result.timings.prefill_ms is None


@pytest.mark.parametrize("gate_at", [0, 2])
def test_a_stop_is_obeyed_at_once_and_reaches_the_server(remote: Remote, gate_at: int) -> None:
    gate = threading.Event()
    remote.server.plan(Stream("one two three four", gate=gate, gate_at=gate_at))
    events = remote.backend.ask(request())
    for _ in range(1 + gate_at):
        events.get()
    assert remote.server.arrived.wait(20)
    threading.Thread(target=events.stop).start()
    last = list(events)[-1]  # while the server still holds its next piece back
    assert isinstance(last, TurnFinished)
    assert last.result.finish_reason == "stopped"
    assert last.result.text == ("one two " if gate_at else "")
    assert last.result.usage == Usage(None, None, None, None, None)
    gate.set()
    assert remote.result().text == "You said: hello there"


def test_a_stop_that_comes_too_late_does_nothing(remote: Remote) -> None:
    events = remote.backend.ask(request())
    list(events)
    events.stop()
    assert events.get() is None
    assert remote.result().finish_reason == "stop"


def test_a_turn_that_is_not_read_to_its_end_is_ended(remote: Remote) -> None:
    gate = threading.Event()
    words = " ".join(["word"] * 20_000)
    remote.server.plan(Stream(words, gate=gate))
    events = remote.backend.ask(request())
    assert isinstance(events.get(), TurnPlanned)
    for event in events:
        assert isinstance(event, TextDelta)
        break
    gate.set()
    assert remote.server.broken_off.wait(20)
    assert remote.result().text == "You said: hello there"


def test_closing_ends_the_turn_and_every_thread(server: FakeServer) -> None:
    remote = Remote(server)
    server.plan(Stream("one two three", gate=threading.Event()))
    events = remote.backend.ask(request())
    events.get(), events.get()
    remote.backend.close()
    remote.backend.close()
    assert isinstance(list(events)[-1], TurnFinished)
    assert isinstance(remote.turn()[-1], TurnFailed)
    with pytest.raises(UnavailableError, match="closed"):
        remote.backend.wait_ready()
    for thread in threading.enumerate():
        if thread.name == "remote-p":
            thread.join(20)
            assert not thread.is_alive()


# Starting


def test_the_server_is_asked_before_it_is_ready(remote: Remote) -> None:
    with pytest.raises(TimeoutError):
        remote.backend.wait_ready(0)
    remote.backend.start()
    remote.backend.start()
    info = remote.backend.wait_ready()
    assert (info.model, info.backend, info.device) == ("p:tiny", "remote", remote.profile.host)
    assert (info.kv_bytes_per_token, info.num_parameters, info.max_context_tokens) == (0, 0, 0)
    assert len(remote.server.asked) == 1
    assert isinstance(remote.heard[0], ModelLoading)
    assert remote.heard[-1] == ModelReady(info)
    late: list[BackendEvent] = []
    undo = remote.backend.subscribe(late.append)
    assert late == [ModelReady(info)]
    undo()


@pytest.mark.parametrize(
    "row",
    [
        {"id": "big", "max_model_len": 4096},
        {"id": "big", "context_length": 4096},
        {"id": "big", "meta": {"n_ctx": 4096, "n_ctx_train": 131072}},
    ],
)
def test_a_server_with_one_model_needs_no_name(row: dict[str, Any]) -> None:
    with FakeServer(models=[row]) as server:
        remote = Remote(server, model=None)
        info = remote.backend.wait_ready()
        assert (info.model, info.max_context_tokens) == ("p:big", 4096)
        remote.result()
        assert server.chats[0].body["model"] == "big"
        remote.backend.close()


@pytest.mark.parametrize("models", [[], [{"id": "a"}, {"id": "b"}], Status(404)])
def test_without_a_name_a_choice_is_asked_for(models: Any) -> None:
    with FakeServer(models=models) as server:
        remote = Remote(server, model=None)
        with pytest.raises(UsageError) as raised:
            remote.backend.wait_ready()
        assert "names no model" in raised.value.message
        is_several = isinstance(models, list) and len(models) > 1
        assert ("It has a, b." in raised.value.hint) is is_several
        assert isinstance(remote.heard[-1], BackendFailed)
        remote.backend.close()


@pytest.mark.parametrize("models", [Status(404), Status(405, "<html>"), Status(500), [], [1, "x"]])
def test_a_server_without_a_list_answers_all_the_same(models: Any) -> None:
    with FakeServer(models=models) as server:
        remote = Remote(server)
        assert remote.result().text == "You said: hello there"
        remote.backend.close()


def test_a_start_that_failed_can_be_tried_again(server: FakeServer) -> None:
    server.models = Status(401, {"error": {"message": "no"}})
    remote = Remote(server)
    for _ in range(2):
        remote.backend.start()
        with pytest.raises(UnavailableError, match="wants a key"):
            remote.backend.wait_ready()
    server.models = [{"id": "tiny"}]
    remote.backend.start()
    assert remote.backend.wait_ready().model == "p:tiny"
    remote.backend.close()


def test_a_server_that_is_loading_is_waited_for(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatcache.backends.remote import backend

    monkeypatch.setattr(backend, "LOADING_POLL_SECONDS", 0.01)
    server.models = Status(503, {"error": {"message": "Loading model", "code": 503}})
    remote = Remote(server)

    def look(event: BackendEvent) -> None:
        if isinstance(event, ModelLoading) and "is loading" in event.stage:
            server.models = [{"id": "tiny"}]

    remote.backend.subscribe(look)
    remote.backend.start()
    assert remote.backend.wait_ready(20).model == "p:tiny"
    remote.backend.close()


def test_a_server_that_is_slow_to_list_answers_all_the_same(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatcache.backends.remote import client

    monkeypatch.setattr(client, "LIST_SECONDS", 0.05)
    server.models_gate = threading.Event()
    remote = Remote(server)
    assert remote.result().text == "You said: hello there"
    server.models_gate.set()
    remote.backend.close()


def test_one_connection_serves_many_turns(remote: Remote) -> None:
    for _ in range(3):
        remote.result()
    ports = {one.client for one in remote.server.asked}
    assert len(ports) == 1


# What is not here


def test_what_a_server_keeps_is_not_acted_on(remote: Remote) -> None:
    remote.backend.start()
    remote.backend.wait_ready()
    backend = remote.backend
    assert backend.estimate([TokenIds((1, 2, 3))]) == [CostEstimate(0, 0, 3, None)]
    assert backend.prepare(Prepare("x", "draft", request())) is False
    backend.cancel_prepare()
    assert backend.spill() is False
    assert not [event for event in remote.heard if isinstance(event, CacheEvent)]
    with pytest.raises(UnavailableError, match="keeps its model and its cache to itself"):
        backend.study(DescribeModel())
