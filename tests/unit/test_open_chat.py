"""The open chat without a screen: what each command does to it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.errors import ChatcacheError, NotFoundError, UsageError
from chatcache.frontend.open_chat import OpenChat, as_turn
from chatcache.frontend.progress import unheard
from chatcache.personas import Persona
from tests.fakes import FakeBackend

TUTOR = Persona("tutor", "Ask back.", {"temperature": 0.5})


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(starts_ready=True)


@pytest.fixture
def service(tmp_path: Path, backend: FakeBackend) -> Iterator[ChatService]:
    with ChatService(SessionStore(tmp_path / "chats.db"), backend) as service:
        backend.start()
        yield service


@pytest.fixture
def chat(service: ChatService) -> OpenChat:
    return OpenChat(service, personas={"tutor": TUTOR})


def say(chat: OpenChat, *texts: str) -> None:
    for text in texts:
        for _ in chat.send(text):
            pass
        chat.refresh()


def texts(chat: OpenChat) -> list[str]:
    return [message.text for message in chat.messages() if message.role == "user"]


def test_a_chat_gets_its_row_with_its_first_message(chat: OpenChat, service: ChatService) -> None:
    chat.change_system("Be brief.")
    chat.start_new("first")
    assert service.list_sessions() == []
    assert chat.session_id == ""
    with pytest.raises(NotFoundError):
        chat.require_session()
    say(chat, "one")
    assert chat.name == "first"
    assert chat.system() == "Be brief."
    chat.start_new()
    assert (chat.session, chat.system_prompt) == (None, "Be brief.")


def test_undo_after_a_turn_that_failed_goes_back_over_that_turn_alone(
    chat: OpenChat, backend: FakeBackend
) -> None:
    say(chat, "one", "two")
    backend.fail_at = "answer"
    with pytest.raises(ChatcacheError):
        say(chat, "three")
    forked = chat.undo()
    assert forked.text == "three"
    assert texts(chat) == ["one", "two"]
    assert "is as it was" in forked.words
    assert chat.origin() == "one"
    assert chat.session == forked.session


def test_undo_and_edit_need_a_message(chat: OpenChat) -> None:
    with pytest.raises(UsageError, match="no turn to go back over"):
        chat.undo()
    with pytest.raises(UsageError, match="no message to edit"):
        chat.question_to_edit()


def test_edit_keeps_the_original_beside(chat: OpenChat, service: ChatService) -> None:
    say(chat, "one", "two")
    question = chat.question_to_edit()
    assert (question.turn, question.text) == (2, "two")
    for _ in chat.edit(2, "zwei"):
        pass
    assert texts(chat) == ["one", "zwei"]
    assert "one (before edit)" in [session.name for session in service.list_sessions()]


def test_answers_to_one_message_are_walked(chat: OpenChat) -> None:
    chat.ensure_session()
    with pytest.raises(UsageError, match="no answer yet"):
        chat.variant()
    say(chat, "two")
    with pytest.raises(UsageError, match="only one answer"):
        chat.variant()
    for _ in chat.regenerate():
        pass
    assert chat.variant().words == "Answer 1 of 2."
    assert chat.variant("2").number == 2
    answer = chat.messages(1)[-1]
    assert chat.variant_beside(answer.node_id, 1) is None
    older = chat.variant_beside(answer.node_id, -1)
    assert older is not None
    assert older.number == 1


def test_a_variant_is_one_of_the_last_message_also_when_that_has_no_answer(
    chat: OpenChat, backend: FakeBackend
) -> None:
    say(chat, "one")
    backend.fail_at = "answer"
    with pytest.raises(ChatcacheError):
        say(chat, "two")
    with pytest.raises(UsageError, match="no answer yet"):
        chat.variant()


def test_the_length_of_the_chat_follows_the_variant(chat: OpenChat) -> None:
    say(chat, "one", "two")
    chat.fork(1)
    for _ in chat.regenerate():
        pass
    chat.variant()
    assert chat.session is not None
    assert chat.session.num_turns == 2


def test_another_system_prompt_is_told_by_what_it_does(chat: OpenChat) -> None:
    assert not chat.change_system("Be brief.").is_reread
    say(chat, "one")
    assert not chat.change_system("Be brief.").is_reread
    assert chat.change_system("Be long.").is_reread
    assert chat.system() == "Be long."
    chat.change_system("")
    assert chat.system() is None


def test_a_system_prompt_with_the_time_in_it_is_warned_of(chat: OpenChat) -> None:
    assert chat.change_system(f"It is {datetime.now():%Y-%m-%d}.").warning
    assert chat.change_system("It is late.").warning is None


def test_a_persona_brings_its_system_prompt_and_sampling(
    chat: OpenChat, backend: FakeBackend
) -> None:
    with pytest.raises(NotFoundError, match="no persona 'tuter'") as refused:
        chat.find_persona("tuter")
    assert "tutor" in refused.value.hint
    chat.use_persona(chat.find_persona("tutor"))
    say(chat, "one")
    assert backend.requests[-1].sampling.temperature == 0.5
    assert backend.requests[-1].messages[0].text == "Ask back."
    assert "already" in chat.use_persona(TUTOR).words


def test_sampling_and_history_mode_are_changed_by_words(chat: OpenChat) -> None:
    assert chat.set_parameter("seed=7").startswith("seed: 7.")
    assert chat.sampling.params.seed == 7
    with pytest.raises(UsageError):
        chat.set_parameter("sed 7")
    say(chat, "one")
    assert chat.history_mode().startswith("canonical")
    assert chat.history_mode("append").startswith("append")


def test_switch_rename_delete(chat: OpenChat, service: ChatService) -> None:
    say(chat, "one")
    chat.start_new()
    say(chat, "two")
    assert chat.rename("second") == "This chat is now called “second”."
    assert chat.switch("one").name == "one"
    with pytest.raises(UsageError, match="name is missing"):
        chat.switch("")
    with pytest.raises(UsageError, match="new name is missing"):
        chat.rename("")
    left = chat.delete()
    assert left is not None
    assert left.name == "second"
    assert chat.delete() is None
    assert chat.session is None
    assert service.list_sessions() == []


def test_a_chat_that_another_program_deleted_is_left(chat: OpenChat, service: ChatService) -> None:
    say(chat, "one")
    chat.start_new()
    say(chat, "two")
    service.delete(chat.session_id)
    assert not chat.refresh()
    assert chat.name == "one"


def test_a_branch_is_followed_and_removed(chat: OpenChat) -> None:
    say(chat, "one", "two")
    chat.fork(1)
    say(chat, "zwei")
    rows = [row.branch for row in chat.branches().rows()]
    assert chat.follow(rows[0]).name == "one"
    chat.remove(next(branch for branch in rows if branch.text == "zwei").first_id)
    assert chat.name == "one"
    only = chat.branches().rows()[-1].branch
    with pytest.raises(UsageError, match="nothing beside"):
        chat.plan_removal(only.node_id, is_path_kept=True)
    assert texts(chat) == ["one", "two"]


def test_when_the_open_chat_goes_with_a_branch_one_of_its_tree_is_open(chat: OpenChat) -> None:
    say(chat, "one", "two")
    chat.fork(1)
    say(chat, "zwei")
    fork_id = chat.session_id
    chat.start_new("elsewhere")
    say(chat, "three")
    chat.open(chat.service.find_session(fork_id))
    main = next(row.branch for row in chat.branches().rows() if row.branch.text == "two")
    assert chat.plan_removal(main.node_id, is_path_kept=True).deleted == (fork_id,)
    chat.remove(main.node_id, is_path_kept=True)
    assert chat.name == "one"


def test_an_export_is_imported_again(chat: OpenChat, tmp_path: Path) -> None:
    say(chat, "one")
    path = tmp_path / "chat.json"
    assert chat.export(str(path), unheard).startswith(f"Written to {path}, ")
    assert json.loads(path.read_text())["messages"]
    before = chat.session_id
    assert chat.import_chat(str(path), unheard).session_id != before
    assert texts(chat) == ["one"]


def test_what_is_copied(chat: OpenChat) -> None:
    with pytest.raises(UsageError, match="no answer to copy"):
        chat.text_to_copy()
    say(chat, "code:\n```\ncode\n```")
    assert chat.text_to_copy("code") == "code"
    say(chat, "two")
    assert chat.text_to_copy() == "You said: two"
    with pytest.raises(UsageError, match="no code block"):
        chat.text_to_copy("code")


def test_what_would_disturb_an_answer_is_refused(service: ChatService, tmp_path: Path) -> None:
    chat = OpenChat(service, is_busy=lambda: True)
    say(chat, "one")
    branch = chat.branches().rows()[0].branch
    for act in (
        chat.undo,
        chat.variant,
        chat.start_new,
        chat.delete,
        chat.question_to_edit,
        lambda: chat.fork(0),
        lambda: chat.switch("one"),
        lambda: chat.change_system("Be brief."),
        lambda: chat.use_persona(TUTOR),
        lambda: chat.variant_beside(branch.node_id, 1),
        lambda: chat.follow(branch),
        lambda: chat.remove(branch.node_id),
        lambda: chat.import_chat("x.json", unheard),
    ):
        with pytest.raises(UsageError, match="An answer is being written"):
            act()
    assert chat.rename("uno")
    assert texts(chat) == ["one"]


def test_the_chat_of_the_last_start_is_open_first(chat: OpenChat, tmp_path: Path) -> None:
    noted = tmp_path / "last.json"
    assert chat.open_first(None, noted) is None
    say(chat, "one")
    first = chat.session
    chat.start_new()
    say(chat, "two")
    assert chat.open_first("one", noted) == first
    chat.note_left(noted, 4e9)
    assert chat.open_first(None, noted) == first
    with pytest.raises(NotFoundError):
        chat.open_first("three", noted)


def test_a_turn_is_a_number() -> None:
    assert as_turn("3") == 3
    with pytest.raises(UsageError, match="'x' is no turn"):
        as_turn("x")
