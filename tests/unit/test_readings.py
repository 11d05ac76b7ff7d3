"""What a model read in a turn, from the database alone, for every way in which a chat can go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import SamplingParams
from chatcache.backends.questions import DescribeModel, TokenPieces
from chatcache.chat import readings
from chatcache.chat.conversation import Message
from chatcache.chat.readings import TurnReading
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.config import DATABASE_NAME
from chatcache.errors import NotFoundError, UnavailableError
from tests.fakes import FakeBackend
from tests.toymodel import render


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(starts_ready=True)


@pytest.fixture
def service(tmp_path: Path, backend: FakeBackend) -> Iterator[ChatService]:
    backend.start()
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), backend) as service:
        yield service


def say(service: ChatService, session_id: str, *texts: str, **options: object) -> None:
    for text in texts:
        *_, _saved = service.send(session_id, text, TurnOptions(**options))  # type: ignore[arg-type]


def check(reading: TurnReading, backend: FakeBackend) -> None:
    """Counts are those of usage, and the messages cover the turn without a gap."""
    assert reading.figures is not None
    usage = reading.figures.usage
    assert len(reading.prompt_ids) == usage.prompt_tokens
    assert len(reading.answer_ids) == usage.completion_tokens
    ends = [0, *(run.stop for run in reading.messages)]
    assert [run.start for run in reading.messages] == ends[:-1]
    assert ends[-1] == len(reading.ids)


def test_every_turn_of_a_chat_is_read_as_the_model_read_it(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("x", "Be kind.").session_id
    say(service, session_id, "one", "two", "three")
    for turn, request in enumerate(backend.requests, 1):
        reading = service.reading(session_id, turn)
        check(reading, backend)
        assert reading.prompt_ids.to_list() == render(request.messages)
        assert (reading.turn, reading.num_turns) == (turn, 3)
        assert reading.namespace_id == backend.info.namespace
        assert reading.tokenizer_id == backend.info.tokenizer_id
        assert [run.roles for run in reading.messages] == [
            ((0, "system"),),
            *(((each, role),) for each in range(1, turn + 1) for role in ("user", "assistant")),
        ]
    assert service.reading(session_id) == reading
    before = service.reading(session_id, 2)
    assert reading.history_ids == before.ids
    assert reading.prompt_ids.startswith(before.ids)
    assert service.reading(session_id, 1).no_history == readings.NOTHING_BEFORE
    with pytest.raises(NotFoundError, match="turns 1 to 3"):
        service.reading(session_id, 4)
    empty = service.create_session().session_id
    with pytest.raises(NotFoundError, match="Nothing has been said"):
        service.reading(empty)
    with pytest.raises(NotFoundError, match="no turn 1"):
        service.reading(empty, 1)


def test_a_fork_an_edit_and_another_answer_are_read_on_their_own_paths(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("x").session_id
    say(service, session_id, "one", "two", "three")
    left = service.reading(session_id, 3)
    fork = service.fork(session_id, at_turn=1).session_id
    assert service.reading(fork).ids == service.reading(session_id, 1).ids
    list(service.edit(session_id, 2, "deux"))
    edited = service.reading(session_id)
    check(edited, backend)
    assert edited.figures is not None
    assert edited.figures.cache.reason == "turn_edited"
    assert edited.history_ids == left.ids  # the line that was left, to its end
    shared = edited.history_ids.common_prefix(edited.prompt_ids)
    assert 0 < shared < min(len(left.ids), len(edited.prompt_ids))
    list(service.regenerate(session_id))
    check(service.reading(session_id), backend)
    assert service.reading(session_id).prompt_ids == edited.prompt_ids


def test_the_first_turn_edited_finds_the_line_that_was_left(
    service: ChatService, backend: FakeBackend
) -> None:
    other = service.create_session("other").session_id
    say(service, other, "one but elsewhere")
    session_id = service.create_session("x").session_id
    say(service, session_id, "one", "two")
    left = service.reading(session_id)
    say(service, other, "newer than all")
    list(service.edit(session_id, 1, "once"))
    edited = service.reading(session_id)
    assert edited.history_ids == left.ids
    for summary in service.list_sessions():
        if summary.forked_from:
            service.delete(summary.session_id)
    assert service.reading(session_id).no_history == readings.LINE_GONE


def test_another_system_prompt_is_compared_with_the_path_that_was_left(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("x", "Be kind.").session_id
    say(service, session_id, "one", "two")
    left = service.reading(session_id)
    service.set_system(session_id, "Be brief.")
    copied = service.reading(session_id)
    assert copied.figures == left.figures  # it was answered, but not on this path
    assert (copied.prompt_ids, copied.unknown) == (left.ids[:0], readings.NOT_KEPT)
    say(service, session_id, "three")
    reading = service.reading(session_id)
    check(reading, backend)
    assert reading.figures is not None
    assert reading.figures.cache.reason == "system_prompt_changed"
    assert reading.history_ids == left.ids


def test_an_answer_that_goes_on_was_read_to_where_it_stopped(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("x").session_id
    say(service, session_id, "one", sampling=SamplingParams(max_new_tokens=4))
    first = service.reading(session_id)
    list(service.continue_answer(session_id))
    reading = service.reading(session_id)
    check(reading, backend)
    assert reading.prompt_ids == first.ids
    assert reading.prompt_ids.to_list() == render(backend.requests[1].messages, is_continued=True)
    assert [run.roles for run in reading.messages] == [
        ((1, "user"),),
        ((1, "assistant"),),
        ((1, "assistant"),),
    ]


def test_a_question_without_an_answer_is_read_as_far_as_it_is_known(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("x").session_id
    say(service, session_id, "one")
    backend.fail_at = "plan"
    with pytest.raises(Exception, match="fake model failed"):
        say(service, session_id, "two")
    reading = service.reading(session_id)
    assert (reading.turn, reading.figures, reading.unknown) == (2, None, readings.NOT_READ)
    backend.fail_at = "prefill"
    with pytest.raises(Exception, match="fake model failed"):
        list(service.regenerate(session_id))
    reading = service.reading(session_id)
    assert reading.prompt_ids.to_list() == render(backend.requests[-1].messages)
    assert (reading.answer_ids, reading.figures) == (reading.ids[:0], None)
    assert reading.namespace_id == ""
    backend.fail_at = None
    say(service, session_id, "three")  # two questions in one message
    check(service.reading(session_id), backend)
    assert service.reading(session_id).messages[-2].roles == ((2, "user"), (3, "user"))


def test_questions_are_passed_on(service: ChatService, backend: FakeBackend) -> None:
    with pytest.raises(UnavailableError):
        service.study(DescribeModel())
    backend.study_answers[DescribeModel] = TokenPieces((), tokenizer="chars")
    assert service.study(DescribeModel()) == TokenPieces((), tokenizer="chars")


def test_an_answer_of_which_only_the_words_were_saved_has_its_prompt(
    service: ChatService, backend: FakeBackend
) -> None:
    session_id = service.create_session("x", "Be kind.").session_id
    say(service, session_id, "one")
    backend.fail_at = "prefill"
    with pytest.raises(Exception, match="fake model failed"):
        say(service, session_id, "two")
    store = service.store
    tip = store.sessions.tip(session_id)
    assert tip is not None
    message = Message("assistant", "Half an", model="fake", finish_reason="stopped")
    store.add_answer(session_id, store.nodes.get(tip), message, tip, None, 3)
    reading = service.reading(session_id)
    assert reading.figures is None
    assert reading.prompt_ids.to_list() == render(backend.requests[-1].messages)
    assert reading.answer_ids == reading.ids[:0]
    assert [run.stop for run in reading.messages][-1] == len(reading.prompt_ids)
