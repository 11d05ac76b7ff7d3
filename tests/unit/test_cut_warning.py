"""A server that reads only a part of a chat, and does not say so: that is said, once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.remote.backend import RemoteBackend
from chatcache.backends.switching import SwitchingBackend
from chatcache.chat.cut_warning import ReadPrompt, warning
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.views import AnswerSaved, ChatEvent
from chatcache.remotes import RemoteModel, RemoteProfile
from tests.fake_server import FakeServer, Raw

LONG = "some words of a message " * 190  # about 1,160 tokens


def answer(num_tokens: int, text: str = "Yes.", finish: str = "stop") -> Raw:
    chunk = {
        "choices": [{"delta": {"content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": num_tokens, "completion_tokens": 2},
    }
    return Raw([f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()])


class Chat:
    """A service on a server that counts as it is told; closed and opened again between turns."""

    def __init__(self, server: FakeServer, path: Path) -> None:
        self.server, self.path = server, path
        self.open()
        self.session = self.service.create_session(system="Be brief.").session_id

    def open(self) -> None:
        profile = RemoteProfile("p", self.server.base_url)
        backend = SwitchingBackend(
            lambda model: RemoteBackend(RemoteModel(profile, model.partition(":")[2])), "p:a"
        )
        self.service = ChatService(SessionStore(self.path), backend)

    def reopen(self) -> None:
        self.service.close()
        self.open()

    def say(self, num_tokens: int, text: str = LONG, session: str | None = None) -> str:
        self.server.plan(answer(num_tokens))
        return self.told(self.service.send(session or self.session, text))

    def told(self, events: Iterator[ChatEvent]) -> str:
        last = list(events)[-1]
        assert isinstance(last, AnswerSaved)
        return last.remark


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    with FakeServer(models=[{"id": "a"}, {"id": "b"}]) as server:
        chat = Chat(server, tmp_path / "chats.db")
        yield chat
        chat.service.close()


@pytest.mark.parametrize("is_reopened", [False, True])
@pytest.mark.parametrize("text", [LONG, "short"])
def test_it_is_said_once_per_chat(chat: Chat, is_reopened: bool, text: str) -> None:
    told = []
    for num_tokens in (1160, 2321, 3482, 4096, 4096, 4096):
        told.append(chat.say(num_tokens, text))
        if is_reopened:
            chat.reopen()
    (remark,) = filter(None, told)
    assert told[3 if text == LONG else 4] == remark
    assert "read only 4,096 tokens of this chat" in remark
    assert "OLLAMA_CONTEXT_LENGTH=16384" in remark


def test_what_was_said_is_not_said_again_in_a_fork(chat: Chat) -> None:
    assert [bool(chat.say(num)) for num in (2321, 3482, 4096, 4096)] == [False, False, True, False]
    forked = chat.service.fork(chat.session).session_id
    assert chat.say(4096, session=forked) == ""


def test_a_shorter_path_is_no_alarm(chat: Chat) -> None:
    for num_tokens in (1160, 2321, 3482):
        assert chat.say(num_tokens) == ""
    forked = chat.service.fork(chat.session, at_turn=1).session_id
    assert chat.say(2322, session=forked) == ""
    chat.server.plan(answer(2330))
    assert chat.told(chat.service.edit(chat.session, 2, LONG)) == ""
    chat.server.plan(answer(2330))
    assert chat.told(chat.service.regenerate(chat.session)) == ""
    assert chat.say(3491) == ""


def test_another_model_counts_otherwise(chat: Chat) -> None:
    for num_tokens in (1160, 2321, 3482):
        assert chat.say(num_tokens) == ""
    backend = chat.service.backend
    assert isinstance(backend, SwitchingBackend)
    backend.switch("p:b")
    assert chat.say(3072) == ""  # with a tokenizer of its own
    backend.switch("p:a")
    assert chat.say(5804) == ""


def test_another_system_prompt_is_another_prompt(chat: Chat) -> None:
    chat.service.set_system(chat.session, LONG * 2)
    for num_tokens in (3480, 4641):
        assert chat.say(num_tokens) == ""
    chat.service.set_system(chat.session, "Be brief.")
    assert chat.say(3482) == ""
    assert chat.say(4643) == ""


def test_an_answer_that_goes_on_is_no_alarm(chat: Chat) -> None:
    chat.server.plan(answer(1160, finish="length"), answer(1162))
    chat.told(chat.service.send(chat.session, LONG))
    assert chat.told(chat.service.continue_answer(chat.session)) == ""
    assert chat.say(2325) == ""


def test_a_first_message_that_is_far_too_long_is_noticed(chat: Chat) -> None:
    assert "read only 2,048 tokens" in chat.say(2048, LONG * 5)


# Any counts


def prompts_of(steps: list[tuple[int, int]]) -> list[ReadPrompt]:
    """(characters, tokens) of each message, summed up."""
    prompts, num_chars, num_tokens = [], 0, 30
    for chars, tokens in steps:
        num_chars, num_tokens = num_chars + chars, num_tokens + tokens
        prompts.append(ReadPrompt(num_chars, num_tokens))
    return prompts


@given(st.lists(st.tuples(st.integers(1, 20_000), st.sampled_from([2, 3, 4, 5, 6])), max_size=12))
def test_a_chat_that_is_read_to_its_end_is_no_alarm(steps: list[tuple[int, int]]) -> None:
    prompts = prompts_of([(chars, 1 + chars // ratio) for chars, ratio in steps])
    for length in range(len(prompts) + 1):
        is_round = length and prompts[length - 1].num_tokens % 256 == 0
        assert is_round or warning(prompts[:length], "h") == ""


@given(
    st.lists(st.integers(400, 20_000), min_size=2, max_size=12),
    st.integers(3, 5),
    st.sampled_from([2048, 4096, 8192]),
)
def test_a_chat_that_grows_beyond_the_context_is_noticed_once(
    messages: list[int], ratio: int, context: int
) -> None:
    whole = prompts_of([(chars, 1 + chars // ratio) for chars in messages])
    prompts = [ReadPrompt(read.num_chars, min(read.num_tokens, context)) for read in whole]
    told = [bool(warning(prompts[: length + 1], "h")) for length in range(len(prompts))]
    num_full = sum(read.num_tokens > context for read in whole)
    assert sum(told) <= 1
    if num_full > 1:
        assert sum(told) == 1
