"""What a server refuses is learned once: no chat is stuck because of what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.base import CacheEvent, ChatMessage, SamplingParams
from chatcache.backends.remote.backend import RemoteBackend
from chatcache.backends.remote.dialect import Dialect
from chatcache.backends.remote.messages import sendable
from chatcache.remotes import RemoteModel, RemoteProfile
from tests.fake_server import FakeServer, Raw, Reply, Status, Stream
from tests.unit.test_remote_backend import PARTIAL, Remote, request

PATH = (
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "one?"),
    ChatMessage("assistant", "One.", reasoning="so it is one"),
    ChatMessage("user", "two?"),
    ChatMessage("assistant", "Two."),
    ChatMessage("user", "three?"),
)
Body = Mapping[str, Any]


@pytest.fixture
def remote() -> Iterator[Remote]:
    with FakeServer() as server:
        remote = Remote(server)
        yield remote
        remote.backend.close()


def no(message: str, status: int = 400, **more: Any) -> Status:
    return Status(status, {"error": {"message": message, **more}})


def answers(body: Body) -> list[Mapping[str, Any]]:
    return [message for message in body["messages"] if message["role"] == "assistant"]


def wants_reasoning(name: str, message: str, *, everywhere: bool) -> Callable[[Body], Reply | None]:
    """A server that refuses answers without their reasoning: all of them, or those it gave."""

    def judge(body: Body) -> Reply | None:
        told = [name in answer for answer in answers(body)]
        return None if not told or (all(told) if everywhere else told[0]) else no(message)

    return judge


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning_content", "The `reasoning_content` in the thinking mode must be handed back."),
        ("reasoning_content", "thinking is enabled but reasoning_content is missing in assistant"
                              " message at index 2"),
        ("reasoning", "messages[2]: 'reasoning' is required for assistant messages"),
        ("thinking_blocks", "Expected `thinking_blocks` in assistant messages, found none"),
        ("reasoning_content", "Reasoning of earlier turns must be provided"),
        ("reasoning_content", "messages.2.reasoning_content cannot be empty"),
        ("reasoning_content", "reasoning_content は必須です"),
    ],
)  # fmt: skip
def test_reasoning_is_handed_back_where_it_is_wanted(
    remote: Remote, name: str, message: str, everywhere: bool
) -> None:
    remote.server.judge = wants_reasoning(name, message, everywhere=everywhere)
    for _ in range(3):
        assert remote.result(request(*PATH)).text == "You said: three?"
    num_asked = len(remote.server.chats)
    assert num_asked == 3 + 1 + everywhere  # each thing it wants is learned once
    first, second = answers(remote.server.chats[-1].body)
    assert first[name] == "so it is one"
    assert second.get(name) == ("" if everywhere else None)


def test_reasoning_in_parts_is_handed_back_in_parts(remote: Remote) -> None:
    remote.server.plan(no("messages.2: `reasoning_details` must be passed back"))
    remote.result(request(*PATH))
    first, second = answers(remote.server.chats[-1].body)
    assert first["reasoning_details"] == [{"type": "reasoning.text", "text": "so it is one"}]
    assert "reasoning_details" not in second


def test_reasoning_that_is_refused_is_not_sent_again(remote: Remote) -> None:
    """It is wanted once by mistake; and a server that wants both at once is given up."""
    remote.server.plan(
        no("reasoning_content must be passed back"),
        no("Extra inputs are not permitted: messages.2.reasoning_content"),
    )
    assert remote.result(request(*PATH)).text == "You said: three?"
    remote.result(request(*PATH))
    assert [len(one) for one in answers(remote.server.chats[-1].body)] == [2, 2]
    remote.server.judge = lambda body: no("reasoning_content must be passed back and is unknown")
    remote.failure(request(*PATH))
    assert len(remote.server.chats) < 20


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_answer_without_words_is_not_sent(remote: Remote, text: str) -> None:
    """Servers refuse empty messages, and that of every later turn, too."""

    def judge(body: Body) -> Reply | None:
        roles = [message["role"] for message in body["messages"] if message["role"] != "system"]
        is_bad = any(a == b for a, b in pairwise(roles)) or not all(
            message["content"].strip() for message in body["messages"]
        )
        return no("messages: text content blocks must be non-empty") if is_bad else None

    remote.server.judge = judge
    path = (*PATH[:4], ChatMessage("assistant", text, reasoning="only thoughts"), PATH[5])
    assert remote.result(request(*path)).text == "You said: two?\n\nthree?"
    assert len(remote.server.chats) == 1
    nothing = request(ChatMessage("system", " "), ChatMessage("user", "hi"))
    assert remote.result(nothing).text == "You said: hi"


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "Developer instruction is not enabled for this model",
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "Only user and assistant roles are supported!",
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_a_system_prompt_that_is_refused_is_folded(
    remote: Remote, message: str, status: int
) -> None:
    def judge(body: Body) -> Reply | None:
        return no(message, status) if body["messages"][0]["role"] == "system" else None

    remote.server.judge = judge
    for _ in range(2):
        assert remote.result().text == "You said: Be brief.\n\nhello there"
    assert len(remote.server.chats) == 3


@pytest.mark.parametrize(
    "words",
    [
        "Unknown parameter: '{}'",
        'json: unknown field "{}"',
        "property '{}' is unsupported",
        'Invalid JSON payload received. Unknown name "{}": Cannot find field.',
        "got an unexpected keyword argument '{}'",
        "$.{} is not allowed here",
        "Unknown fields in the request",  # and does not say which
        "additional properties are not permitted",
        "Extra inputs are not permitted",
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_field_that_is_unknown_is_left_out(remote: Remote, words: str, status: int) -> None:
    """Also in a request that goes on with an answer, and each field of it."""
    ours = ("stream_options", "continue_final_message", "add_generation_prompt")

    def judge(body: Body) -> Reply | None:
        name = next((name for name in ours if name in body), None)
        return None if name is None else no(words.format(name), status)

    remote.server.judge = judge
    remote.server.plan(Stream(" goes on"), Stream(" goes on"))
    remote.result(request(*PARTIAL, continue_answer=True))
    num_asked = len(remote.server.chats)
    assert num_asked <= 1 + len(ours)
    remote.result(request(*PARTIAL, continue_answer=True))
    assert len(remote.server.chats) == num_asked + 1


def test_what_the_user_has_set_is_never_left_out_in_silence(remote: Remote) -> None:
    remote.server.plan(no("Extra inputs are not permitted: top_k"))
    error = remote.failure(request(sampling=SamplingParams(top_k=5))).error
    assert "does not take top_k" in str(error)
    assert len(remote.server.chats) == 1


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "max_tokens is deprecated: use max_completion_tokens, the maximum of both is 4096",
        "This field was replaced by the `max_completion_tokens` field",
    ],
)
def test_a_limit_with_another_name_is_sent_with_it(remote: Remote, message: str) -> None:
    remote.server.judge = lambda body: no(message) if "max_tokens" in body else None
    for _ in range(2):
        remote.result(request(sampling=SamplingParams(max_new_tokens=5)))
    assert len(remote.server.chats) == 3
    assert remote.server.chats[-1].body["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    "refusal",
    [
        no("max_tokens: Field required"),
        Status(422, {"detail": [{"loc": ["body", "max_tokens"], "msg": "Field required"}]}),
        no("missing field `max_tokens` at line 1 column 80"),
    ],
)
def test_a_limit_that_is_wanted_is_given(remote: Remote, refusal: Status) -> None:
    remote.server.judge = lambda body: None if body.get("max_tokens") else refusal
    remote.result()
    remote.result()
    assert len(remote.server.chats) == 3


def test_a_server_that_does_not_stream_is_not_asked_to(remote: Remote) -> None:
    message = "Your organization must be verified to stream this model."

    def judge(body: Body) -> Reply | None:
        if body.get("stream"):
            return no(message, param="stream", code="unsupported_value")
        whole = {"choices": [{"message": {"content": "All at once."}}]}
        return Raw([json.dumps(whole).encode()], "application/json")

    remote.server.judge = judge
    assert remote.result().text == "All at once."
    assert "stream_options" not in remote.server.chats[-1].body


def test_a_chat_whose_turns_are_refused_is_told_in_one_message(remote: Remote) -> None:
    def judge(body: Body) -> Reply | None:
        return no("messages: the history is not valid") if len(body["messages"]) > 1 else None

    remote.server.judge = judge
    told = remote.result(request(*PATH)).text
    assert told == (
        "You said: System:\nBe brief.\n\nUser:\none?\n\nAssistant:\nOne.\n\nUser:\ntwo?"
        "\n\nAssistant:\nTwo.\n\nUser:\nthree?"
    )
    assert remote.result(request(*PATH)).text == told
    warnings = [event.text for event in remote.heard if isinstance(event, CacheEvent)]
    assert len(warnings) == 1
    assert "go as one message" in warnings[0]


def test_a_refusal_that_teaches_nothing_is_said_at_once(remote: Remote) -> None:
    remote.server.plan(no("flagged by the moderation: the content of messages"))
    remote.failure(request(*PATH))
    others = [
        no("the model is on holiday"),
        no('"llama3.2" does not support thinking'),
        no("Error while processing the message", 500),
        no("system error: try again", 500),
        no("max_tokens is too large: 100000"),
        no("This model's maximum context length is 10 tokens", 400),
        no("You must add credit, for this reason", 402),
        no("Invalid API key: it must be passed", 401),
    ]
    for refusal in others:
        remote.server.plan(refusal)
        remote.failure(request(*PATH))
    remote.server.judge = lambda body: None
    remote.result(request(*PATH))
    assert len(remote.server.chats) == 2 + len(others)
    assert len(remote.server.chats[-1].body["messages"]) == len(PATH)


def test_a_refusal_in_a_stream_teaches_as_well(remote: Remote) -> None:
    remote.server.plan(Raw([b'data: {"error": {"message": "Unknown field: stream_options"}}\n\n']))
    assert remote.result().text == "You said: hello there"


def test_an_answer_that_has_begun_teaches_nothing(remote: Remote) -> None:
    error = b'data: {"error": {"message": "Unknown field: stream_options"}}\n\n'
    remote.server.plan(Raw([b'data: {"choices": [{"delta": {"content": "Hm"}}]}\n\n', error]))
    failed = remote.failure()
    assert failed.partial is not None
    assert len(remote.server.chats) == 1


def test_what_was_learned_is_kept_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "servers.json"
    with FakeServer() as server:
        server.judge = lambda body: (
            no("Unknown field: stream_options") if "stream_options" in body else None
        )
        for _ in range(3):
            remote = Remote(server, lessons=path)
            assert remote.result(request(*PATH)).text == "You said: three?"
            remote.backend.close()
        assert len(server.chats) == 4
        assert b"stream_options" in path.read_bytes()
        assert b"one?" not in path.read_bytes()
        for content in (b"{", b"[1]", b'{"x": 1}', b"\xff", b""):
            path.write_bytes(content)
            remote = Remote(server, lessons=path)
            assert remote.result().text == "You said: hello there"
            remote.backend.close()
        (tmp_path / "file").touch()
        remote = Remote(server, lessons=tmp_path / "file" / "servers.json")
        assert remote.result().text == "You said: hello there"
        remote.backend.close()


@pytest.mark.parametrize(
    "lessons",
    [
        None,
        [],
        {
            "unknown": [1, "a", "messages"],
            "folds_system": "yes",
            "reasoning_filler": 3,
            "owner": "me",
            "reasoning_field": "content",
        },
    ],
)
def test_lessons_that_make_no_sense_are_passed_over(lessons: Any) -> None:
    dialect = Dialect()
    dialect.recall(lessons)
    assert dialect in (Dialect(), Dialect(unknown={"a"}))
    known = Dialect("x", {"a"}, "reasoning", " ", folds_system=True, thinks_unopened=True)
    again = Dialect()
    again.recall(json.loads(json.dumps(known.lessons())))
    known.owner = ""
    assert again == known


def test_the_same_path_is_written_alike_each_turn() -> None:
    for dialect in (Dialect(), Dialect(reasoning_field="reasoning"), Dialect(folds_system=True)):
        written = [sendable(request(*PATH[:length]), dialect) for length in (2, 4, 6)]
        for shorter, longer in pairwise(written):
            assert longer[: len(shorter)] == shorter


def test_a_model_of_the_same_server_is_learned_by_itself(tmp_path: Path) -> None:
    with FakeServer(models=[{"id": "a"}, {"id": "b"}]) as server:
        server.plan(no("Unknown field: stream_options"))
        path = tmp_path / "servers.json"
        for model, has_field in (("a", False), ("b", True)):
            profile = RemoteProfile("p", server.base_url)
            backend = RemoteBackend(RemoteModel(profile, model), lessons=path)
            list(backend.ask(request()))
            backend.close()
            assert ("stream_options" in server.chats[-1].body) is has_field


def test_thoughts_in_the_middle_do_not_stop_a_stream(remote: Remote) -> None:
    remote.server.plan(Stream("Yes.", reasoning="hm"))
    assert remote.result().reasoning == "hm"
