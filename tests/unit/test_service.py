"""The service with a fake backend: what turns leave behind, however they end."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from chatcache.backends.base import PrefillProgress, SamplingParams, TextDelta, TurnPlanned
from chatcache.chat.figures import turn_report
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.views import AnswerSaved, ChatEvent, UserMessageSaved, WaitingForModel
from chatcache.config import DATABASE_NAME
from chatcache.errors import (
    ChatcacheError,
    ContextFullError,
    EngineDiedError,
    ModelLoadError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from chatcache.token_ids import NO_IDS, TokenIds
from tests.fakes import FakeBackend, fake_model_info

Open = Callable[..., ChatService]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / DATABASE_NAME


@pytest.fixture
def open_service(path: Path) -> Iterator[Open]:
    opened: list[ChatService] = []

    def open_one(backend: FakeBackend | None = None) -> ChatService:
        backend = backend or FakeBackend()
        if not backend.is_started:
            backend.start()
        opened.append(ChatService(SessionStore(path), backend))
        return opened[-1]

    yield open_one
    for service in opened:
        service.close()


def answer(events: Iterable[ChatEvent]) -> AnswerSaved:
    *_, last = events
    assert isinstance(last, AnswerSaved)
    return last


def said(service: ChatService, session_id: str) -> list[str]:
    return [message.text for message in service.transcript(session_id)]


def test_the_events_of_a_turn_come_in_order(open_service: Open) -> None:
    service = open_service(FakeBackend(["One two."]))
    backend = service.backend
    assert backend is not None
    backend.wait_ready(5)
    session = service.create_session(system="Be kind.")
    events = list(service.send(session.session_id, "Hello"))
    assert [type(event) for event in events] == [
        UserMessageSaved,
        TurnPlanned,
        PrefillProgress,
        PrefillProgress,
        TextDelta,
        TextDelta,
        AnswerSaved,
    ]
    messages = service.transcript(session.session_id)
    assert [(m.role, m.turn, m.text) for m in messages] == [
        ("system", 0, "Be kind."),
        ("user", 1, "Hello"),
        ("assistant", 1, "One two."),
    ]
    assert messages[2].node_id == answer(iter(events)).node_id
    assert service.verify() == []


def test_the_words_are_on_disk_before_the_model_is_asked(open_service: Open, path: Path) -> None:
    backend = FakeBackend()
    gate = backend.gate("load")
    service = open_service(backend)
    session = service.create_session()
    events = service.send(session.session_id, "Hello")
    assert isinstance(events.get(), UserMessageSaved)
    other = SessionStore(path)
    assert other.list()[0].preview == "Hello"
    other.close()
    assert isinstance(events.get(), WaitingForModel)
    assert backend.requests == []
    gate.open()
    assert answer(events).result.text == "You said: Hello"


def test_the_next_turn_continues_the_journal(open_service: Open) -> None:
    backend = FakeBackend()
    service = open_service(backend)
    session = service.create_session(system="Be kind.").session_id
    first = answer(service.send(session, "one"))
    second = answer(service.send(session, "two"))
    journal = backend.requests[1].journal
    assert len(journal) == first.result.usage.prompt_tokens + first.result.usage.completion_tokens
    assert second.result.usage.cached_tokens == len(journal)
    assert second.result.usage.computed_tokens == len("two") + 3
    assert service.list_sessions()[0].num_tokens == (
        second.result.usage.prompt_tokens + second.result.usage.completion_tokens
    )
    previous = backend.requests[1].previous
    assert previous is not None
    assert dict(previous.namespace) == dict(backend.info.namespace_fields)
    assert previous.cause is None


def test_a_turn_reads_the_journal_of_its_path_once(open_service: Open) -> None:
    service = open_service()
    session = service.create_session(system="Be kind.").session_id
    statements: list[str] = []
    with service.store.database.reading() as connection:
        connection.set_trace_callback(statements.append)

    def num_reads(turn: Iterable[ChatEvent]) -> int:
        statements.clear()
        list(turn)
        assert any("INTO journals" in statement for statement in statements)
        return sum("JOIN journals" in statement for statement in statements)

    assert num_reads(service.send(session, "one")) == 1
    assert num_reads(service.send(session, "two")) == 1
    assert num_reads(service.regenerate(session)) == 1
    short = TurnOptions(SamplingParams(max_new_tokens=4))
    assert num_reads(service.send(session, "three", short)) == 1
    assert num_reads(service.continue_answer(session)) == 1
    # The line that was left is another path.
    assert num_reads(service.edit(session, 1, "eins")) == 2
    assert service.verify() == []


def test_another_process_continues_the_same_journal(open_service: Open) -> None:
    service = open_service()
    session = service.create_session("a").session_id
    answer(service.send(session, "one"))
    journal = service.session_journal(session)
    service.close()
    assert journal is not None
    backend = FakeBackend(known_journals=[journal.ids])
    saved = answer(open_service(backend).send(session, "two"))
    assert backend.requests[0].journal == journal.ids
    assert saved.result.usage.cached_disk_tokens == len(journal.ids)


def test_another_tokenizer_starts_from_the_words(open_service: Open) -> None:
    service = open_service()
    session = service.create_session().session_id
    answer(service.send(session, "one"))
    service.close()
    other = FakeBackend(
        tokens_per_char=2,
        info=fake_model_info("other", tokenizer_id="pairs", namespace="ns-other"),
    )
    service = open_service(other)
    answer(service.send(session, "two"))
    assert other.requests[0].journal == NO_IDS
    assert [m.text for m in other.requests[0].messages] == ["one", "You said: one", "two"]
    answer(service.send(session, "three"))
    assert len(other.requests[1].journal) > 0
    service.close()
    back = FakeBackend()
    service = open_service(back)
    answer(service.send(session, "four"))
    # The first tokenizer's journal goes on from where it ended.
    assert len(back.requests[0].journal) == len("one") + 3 + len("You said: one") + 1
    assert service.verify() == []


@pytest.mark.parametrize("text", ["", "  \n", "\t"])
def test_an_empty_message_is_refused_at_once(open_service: Open, text: str) -> None:
    service = open_service()
    session = service.create_session().session_id
    with pytest.raises(UsageError):
        service.send(session, text)
    assert service.transcript(session) == []


def test_an_unknown_session_is_refused_at_once(open_service: Open) -> None:
    service = open_service()
    service.create_session("garden")
    with pytest.raises(NotFoundError) as caught:
        service.find_session("gardn")
    assert "garden" in caught.value.hint
    with pytest.raises(NotFoundError):
        service.send("s_000000000000", "hello")


def test_without_a_backend_only_turns_are_refused(path: Path) -> None:
    service = ChatService(SessionStore(path), None)
    session = service.create_session("a", "sys").session_id
    with pytest.raises(UnavailableError):
        service.send(session, "hello")
    assert service.fork(session).at_turn == 0
    assert said(service, session) == ["sys"]
    service.close()


def test_a_stopped_answer_is_kept_and_marked(open_service: Open) -> None:
    backend = FakeBackend(["One two three."])
    gate = backend.gate("delta:2")
    service = open_service(backend)
    session = service.create_session().session_id
    events: list[ChatEvent] = []
    thread = threading.Thread(target=lambda: events.extend(service.send(session, "go")))
    thread.start()
    assert gate.arrived.wait(5)
    service.stop()
    thread.join(5)
    saved = events[-1]
    assert isinstance(saved, AnswerSaved)
    assert (saved.result.text, saved.result.finish_reason) == ("One two ", "stopped")
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason) == ("One two ", "stopped")
    assert json.loads(last.result_json or "")["usage"]["completion_tokens"] == len("One two ")


def test_a_turn_stopped_before_the_first_word_keeps_the_question(open_service: Open) -> None:
    backend = FakeBackend()
    gate = backend.gate("plan")
    service = open_service(backend)
    session = service.create_session().session_id
    events: list[ChatEvent] = []
    thread = threading.Thread(target=lambda: events.extend(service.send(session, "go")))
    thread.start()
    assert gate.arrived.wait(5)
    service.stop()
    thread.join(5)
    saved = events[-1]
    assert isinstance(saved, AnswerSaved)
    assert saved.node_id is None
    assert said(service, session) == ["go"]


def test_a_turn_is_stopped_while_the_model_loads(open_service: Open) -> None:
    backend = FakeBackend()
    backend.gate("load")
    service = open_service(backend)
    session = service.create_session().session_id
    events = service.send(session, "go")
    assert isinstance(events.get(), UserMessageSaved)
    assert isinstance(events.get(), WaitingForModel)
    service.stop()
    saved = answer(events)
    assert (saved.node_id, saved.result.finish_reason) == (None, "stopped")
    assert backend.requests == []
    assert said(service, session) == ["go"]


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_a_consumer_that_leaves_loses_no_words(open_service: Open, how: str) -> None:
    backend = FakeBackend(["One two three."])
    backend.gate("delta:2")
    service = open_service(backend)
    session = service.create_session().session_id
    turn = service.send(session, "go")

    def read() -> None:
        for event in turn:
            if isinstance(event, TextDelta) and event.text == "two ":
                if how == "interrupt":
                    raise KeyboardInterrupt
                return

    with pytest.raises(KeyboardInterrupt) if how == "interrupt" else contextlib.nullcontext():
        read()
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason) == ("One two ", "stopped")
    journal = service.session_journal(session)
    assert journal is not None
    assert len(journal.ids) == last.num_tokens
    assert backend.num_stops > 0


@pytest.mark.parametrize("point", ["plan", "prefill", "answer"])
def test_a_failure_before_the_first_word_keeps_the_question(open_service: Open, point: str) -> None:
    backend = FakeBackend(fail_at=point, failure=ContextFullError("Too long.", "Fork."))
    service = open_service(backend)
    session = service.create_session().session_id
    with pytest.raises(ContextFullError):
        list(service.send(session, "go"))
    assert said(service, session) == ["go"]
    backend.fail_at = None
    assert answer(service.regenerate(session)).result.text == "You said: go"
    assert said(service, session) == ["go", "You said: go"]


def test_a_failure_in_mid_answer_keeps_what_was_said(open_service: Open) -> None:
    service = open_service(FakeBackend(["One two three."], fail_at="delta:2"))
    session = service.create_session().session_id
    with pytest.raises(ModelLoadError):
        list(service.send(session, "go"))
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason) == ("One two ", "stopped")


def test_a_dead_engine_keeps_the_words_and_the_next_turn_works(open_service: Open) -> None:
    backend = FakeBackend(die_at="delta:1")
    service = open_service(backend)
    session = service.create_session().session_id
    with pytest.raises(EngineDiedError):
        list(service.send(session, "go"))
    assert said(service, session) == ["go", "You "]
    assert answer(service.send(session, "again")).result.text == "You said: again"
    assert service.verify() == []


def test_an_unexpected_error_is_shown_as_a_bug(open_service: Open) -> None:
    service = open_service(FakeBackend(fail_at="answer", failure=ValueError("odd")))
    session = service.create_session().session_id
    with pytest.raises(ChatcacheError, match="ValueError: odd") as caught:
        list(service.send(session, "go"))
    assert caught.value.exit_code == 1


def test_a_model_that_does_not_load_keeps_the_question(open_service: Open) -> None:
    service = open_service(FakeBackend(load_error=ModelLoadError("No weights.", "Get some.")))
    session = service.create_session().session_id
    with pytest.raises(ModelLoadError):
        list(service.send(session, "go"))
    assert said(service, session) == ["go"]


class FailsOnce(FakeBackend):
    """Loading fails the first time, as with a file that is still being copied."""

    def start(self) -> None:
        if self.is_started:
            self.load_error = None
        super().start()


def test_a_backend_that_failed_before_is_started_again(open_service: Open) -> None:
    backend = FailsOnce(load_error=ModelLoadError("No weights.", "Get some."), starts_ready=True)
    service = open_service(backend)
    if not backend.is_started:
        backend.start()
    session = service.create_session().session_id
    assert answer(service.send(session, "go")).result.text == "You said: go"


def test_an_unsaved_turn_leaves_nothing(open_service: Open, path: Path) -> None:
    backend = FakeBackend()
    service = open_service(backend)
    session = service.create_session("a", "Be kind.").session_id
    answer(service.send(session, "one"))
    before = path.with_name(path.name + "-wal").read_bytes()
    saved = answer(service.send(session, "secret", save=False))
    assert (saved.node_id, saved.turn, saved.result.text) == (None, 2, "You said: secret")
    assert [m.text for m in backend.requests[1].messages][-1] == "secret"
    assert len(backend.requests[1].journal) > 0
    alone = answer(service.send("", "secret", save=False, system="Be odd."))
    assert alone.session_id == ""
    assert [m.text for m in backend.requests[2].messages] == ["Be odd.", "secret"]
    assert path.with_name(path.name + "-wal").read_bytes() == before


def test_regenerating_puts_an_answer_beside_the_old_one(open_service: Open) -> None:
    backend = FakeBackend(["First.", "Second.", "Third."])
    service = open_service(backend)
    session = service.create_session().session_id
    first = answer(service.send(session, "go"))
    second = answer(service.regenerate(session, TurnOptions(SamplingParams(seed=2))))
    last = service.transcript(session)[-1]
    assert (last.text, last.num_siblings, last.sibling_index) == ("Second.", 2, 1)
    assert backend.requests[1].sampling.seed == 2
    assert backend.requests[1].journal == backend.requests[0].journal
    assert second.result.usage.computed_tokens == 1
    assert service.variants(session, last.node_id) == [first.node_id, second.node_id]
    assert first.node_id is not None
    service.switch_sibling(session, first.node_id)
    assert said(service, session) == ["go", "First."]
    answer(service.send(session, "more"))
    assert said(service, session) == ["go", "First.", "more", "Third."]
    assert second.node_id is not None
    service.switch_sibling(session, second.node_id)
    service.switch_sibling(session, first.node_id)
    assert said(service, session) == ["go", "First.", "more", "Third."]
    with pytest.raises(NotFoundError):
        service.switch_sibling(session, "b2:unknown")
    assert [one.name for one in service.list_sessions()] == ["go"]


def test_a_stopped_answer_is_continued_in_a_new_node(open_service: Open) -> None:
    backend = FakeBackend(["One two three four.", "three four."])
    service = open_service(backend)
    session = service.create_session().session_id
    short = answer(service.send(session, "go", TurnOptions(SamplingParams(max_new_tokens=8))))
    assert short.result.finish_reason == "length"
    assert short.result.text == "One two "
    whole = answer(service.continue_answer(session))
    request = backend.requests[1]
    assert request.continue_answer
    assert (request.messages[-1].role, request.messages[-1].text) == ("assistant", "One two ")
    assert whole.result.text == "One two three four."
    last = service.transcript(session)[-1]
    assert (last.text, last.finish_reason, last.num_siblings) == ("One two three four.", "stop", 2)
    # Parent journal, old ids, new ids, and the end.
    journal = service.session_journal(session)
    assert journal is not None
    prompt = TokenIds(backend.render(request.messages, is_continued=True))
    assert journal.ids == prompt + whole.result.answer_ids
    with pytest.raises(UsageError, match="complete"):
        service.continue_answer(session)
    answer(service.send(session, "next"))
    assert backend.requests[2].journal == journal.ids


def test_continuing_a_question_without_an_answer_answers_it(open_service: Open) -> None:
    backend = FakeBackend(fail_at="plan")
    service = open_service(backend)
    session = service.create_session().session_id
    with pytest.raises(UsageError):
        service.continue_answer(session)
    with pytest.raises(ModelLoadError):
        list(service.send(session, "go"))
    backend.fail_at = None
    assert answer(service.continue_answer(session)).result.text == "You said: go"
    assert not backend.requests[-1].continue_answer


def test_editing_keeps_the_old_branch_as_a_session(open_service: Open) -> None:
    backend = FakeBackend()
    service = open_service(backend)
    session = service.create_session("a", "sys").session_id
    for text in ("one", "two", "three"):
        answer(service.send(session, text))
    left = service.session_journal(session)
    answer(service.edit(session, 2, "zwei"))
    assert said(service, session) == ["sys", "one", "You said: one", "zwei", "You said: zwei"]
    old = service.find_session("a (before edit)")
    assert old.forked_from == session
    assert said(service, old.session_id)[-2:] == ["three", "You said: three"]
    assert service.list_sessions()[0].session_id == session
    previous = backend.requests[-1].previous
    assert previous is not None
    assert left is not None
    assert (previous.cause, previous.journal) == ("turn_edited", left.ids)
    answer(service.send(session, "next"))
    assert backend.requests[-1].previous == previous.__class__(dict(previous.namespace))
    service.delete(old.session_id)
    assert service.search("three") == []
    assert service.verify() == []
    for turn in (0, 4, -1):
        with pytest.raises(NotFoundError, match="turns 1 to 3"):
            service.edit(session, turn, "x")


def test_the_first_message_can_be_edited(open_service: Open) -> None:
    service = open_service()
    session = service.create_session("a").session_id
    answer(service.send(session, "one"))
    answer(service.edit(session, 1, "eins"))
    assert said(service, session) == ["eins", "You said: eins"]
    assert said(service, service.find_session("a (before edit)").session_id)[0] == "one"


def test_another_system_prompt_is_a_new_root(open_service: Open) -> None:
    backend = FakeBackend()
    service = open_service(backend)
    session = service.create_session("a", "old").session_id
    answer(service.send(session, "one"))
    fork = service.fork(session).session_id
    before = said(service, fork)
    figures = service.transcript(fork)[-1].result_json
    service.set_system(session, "new")
    assert said(service, session) == ["new", "one", "You said: one"]
    assert said(service, fork) == before
    assert service.transcript(session)[-1].result_json == figures
    answer(service.send(session, "two"))
    request = backend.requests[-1]
    assert request.messages[0].text == "new"
    assert request.journal == NO_IDS
    assert request.previous is not None
    assert request.previous.cause == "system_prompt_changed"
    assert request.previous.journal == backend.requests[0].journal + TokenIds(
        [*backend.render(backend.requests[0].messages), *service_answer_ids("You said: one")]
    )
    service.set_system(session, None)
    assert said(service, session)[0] == "one"
    service.set_system(session, "  ")
    assert said(service, session)[0] == "one"
    assert service.verify() == []


def service_answer_ids(text: str) -> list[int]:
    from tests.fakes import END_ID, encode

    return [*encode(text), END_ID]


def test_a_fork_costs_what_the_backend_says(open_service: Open) -> None:
    service = open_service()
    session = service.create_session("a", "sys").session_id
    for text in ("one", "two"):
        answer(service.send(session, text))
    fork = service.fork(session, at_turn=1, name="b")
    assert (fork.name, fork.at_turn, fork.forked_from) == ("b", 1, session)
    assert fork.cost is not None
    assert fork.cost.ram_tokens == fork.shared_tokens > 0
    assert service.fork(session, at_turn=0).shared_tokens == 0
    assert service.fork(session).at_turn == 2
    with pytest.raises(NotFoundError, match="0 to 2"):
        service.fork(session, at_turn=3)
    points = service.fork_points(session)
    assert [(p.turn, p.user_text, p.answer_text) for p in points] == [
        (2, "two", "You said: two"),
        (1, "one", "You said: one"),
        (0, "", ""),
    ]
    assert all(p.cost and p.cost.ram_tokens == p.num_tokens for p in points)
    assert service.fork_points(service.create_session().session_id)[0].turn == 0


def test_reasoning_is_kept_beside_the_answer(open_service: Open) -> None:
    service = open_service(FakeBackend(["Yes."], reasoning="Let me see."))
    session = service.create_session().session_id
    events = list(service.send(session, "Is it?"))
    assert {e.is_reasoning for e in events if isinstance(e, TextDelta)} == {True, False}
    last = service.transcript(session)[-1]
    assert (last.reasoning, last.text) == ("Let me see.", "Yes.")


def test_a_report_has_the_names_that_scripts_rely_on(open_service: Open) -> None:
    service = open_service()
    session = service.create_session("a").session_id
    answer(service.send(session, "one"))
    report = turn_report(answer(service.send(session, "two")))
    assert list(report) == [
        "session_id",
        "session",
        "turn",
        "node_id",
        "model",
        "model_approximate",
        "backend",
        "text",
        "reasoning",
        "finish_reason",
        "usage",
        "timings",
        "cache",
    ]
    usage = report["usage"]
    details = usage["prompt_tokens_details"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert details["cached_tokens"] == (
        details["cached_ram_tokens"] + details["cached_disk_tokens"]
    )
    assert list(report["cache"]) == [
        "outcome",
        "reason",
        "diverged_at",
        "detail",
        "estimated_cold_ttft_ms",
        "saved_ms",
        "bytes_read",
        "bytes_written",
        "ahead_tokens",
        "approximate",
        "system_tokens",
        "is_estimate_measured",
    ]
    stored = json.loads(service.transcript(session)[-1].result_json or "")
    assert stored == {name: report[name] for name in ("usage", "timings", "cache")}


def test_only_the_last_turns_are_read_when_asked(open_service: Open) -> None:
    service = open_service()
    session = service.create_session("a", "sys").session_id
    for number in range(5):
        answer(service.send(session, str(number)))
    last = service.transcript(session, last_turns=2)
    assert [m.text for m in last if m.role == "user"] == ["3", "4"]
    assert last == service.transcript(session)[-4:]
    assert service.transcript(session, last_turns=9) == service.transcript(session)


def test_two_conversations_are_answered_one_after_the_other(open_service: Open) -> None:
    backend = FakeBackend()
    gate = backend.gate("delta:0")
    service = open_service(backend)
    a, b = service.create_session("a").session_id, service.create_session("b").session_id
    first: list[ChatEvent] = []
    thread = threading.Thread(target=lambda: first.extend(service.send(a, "one")))
    thread.start()
    assert gate.arrived.wait(5)
    second = service.send(b, "two")
    assert isinstance(second.get(), UserMessageSaved)
    assert isinstance(second.get(), WaitingForModel)
    second.close()
    # Leaving the turn that waits does not stop the one that runs.
    assert backend.num_stops == 0
    gate.open()
    thread.join(5)
    assert said(service, a) == ["one", "You said: one"]
    assert said(service, b) == ["two"]
