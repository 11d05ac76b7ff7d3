"""The token ids of one turn: its prompt as it was read, and its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import SamplingParams
from chatcache.backends.questions import DescribeModel, TokenPieces
from chatcache.chat.chat_turn import ChatEvent
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.views import AnswerSaved
from chatcache.config import DATABASE_NAME
from chatcache.errors import NotFoundError, UnavailableError
from chatcache.token_ids import NO_IDS, TokenIds
from tests.fakes import FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    backend = FakeBackend(["One two three four.", "three four."], starts_ready=True)
    backend.start()
    return backend


@pytest.fixture
def service(backend: FakeBackend, tmp_path: Path) -> Iterator[ChatService]:
    with ChatService(SessionStore(tmp_path / DATABASE_NAME), backend) as service:
        yield service


def answer(events: Iterable[ChatEvent]) -> AnswerSaved:
    *_, last = events
    assert isinstance(last, AnswerSaved)
    return last


def test_each_turn_has_its_prompt_and_its_answer(
    service: ChatService, backend: FakeBackend
) -> None:
    session = service.create_session(system="Be kind.").session_id
    assert service.turn_ids(session) is None
    saved = [answer(service.send(session, text)) for text in ("one", "two")]
    for turn, (turn_saved, request) in enumerate(zip(saved, backend.requests, strict=True), 1):
        found = service.turn_ids(session, turn)
        assert found is not None
        assert (found.turn, found.node_id) == (turn, turn_saved.node_id)
        assert found.prompt == TokenIds(backend.render(request.messages))
        assert len(found.prompt) == turn_saved.result.usage.prompt_tokens
        assert found.answer == turn_saved.result.answer_ids
        assert found.namespace_id == backend.info.namespace
    assert service.turn_ids(session) == service.turn_ids(session, 2)
    with pytest.raises(NotFoundError, match="turns 1 to 2"):
        service.turn_ids(session, 3)


def test_an_answer_that_was_continued_has_the_prompt_that_it_was_continued_from(
    service: ChatService, backend: FakeBackend
) -> None:
    session = service.create_session().session_id
    answer(service.send(session, "go", TurnOptions(SamplingParams(max_new_tokens=8))))
    whole = answer(service.continue_answer(session))
    found = service.turn_ids(session)
    assert found is not None
    prompt = backend.render(backend.requests[1].messages, is_continued=True)
    assert (found.prompt, found.answer) == (TokenIds(prompt), whole.result.answer_ids)


def test_a_question_that_was_read_and_not_answered_has_a_prompt_alone(
    service: ChatService, backend: FakeBackend
) -> None:
    session = service.create_session().session_id
    answer(service.send(session, "one"))
    backend.fail_at = "answer"
    list(service.send(session, "two"))
    found = service.turn_ids(session)
    assert found is not None
    assert (found.turn, found.namespace_id, found.answer) == (2, "", NO_IDS)
    assert found.prompt == TokenIds(backend.render(backend.requests[1].messages))


def test_questions_are_passed_on(service: ChatService, backend: FakeBackend) -> None:
    with pytest.raises(UnavailableError):
        service.study(DescribeModel())
    backend.study_answers[DescribeModel] = TokenPieces((), tokenizer="chars")
    assert service.study(DescribeModel()) == TokenPieces((), tokenizer="chars")
