"""The chat as lines: what is said, what the commands do, and how it is interrupted."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.switching import SwitchingBackend
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.errors import StorageError
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.frontend.registry import COMMANDS
from chatcache.frontend.sampling import Sampling
from chatcache.personas import Persona
from chatcache.plain.actions import PlainActions
from chatcache.plain.chat import PlainChat
from chatcache.plain.speech import SpokenStream
from tests.fakes import FakeBackend

Run = Callable[..., list[str]]
TUTOR = Persona("tutor", "Ask back.", {"temperature": 0.5})


@pytest.fixture
def made() -> list[FakeBackend]:
    return []


@pytest.fixture
def run(
    tmp_path: Path,
    made: list[FakeBackend],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Feeds lines to a chat, and gives the lines that it wrote."""
    services: list[ChatService] = []

    def make(model: str) -> FakeBackend:
        made.append(FakeBackend(model=model, starts_ready=True))
        return made[-1]

    def run(*lines: str, session: str | None = None) -> list[str]:
        backend = SwitchingBackend(make, "builtin")
        backend.start()
        services.append(ChatService(SessionStore(tmp_path / "chats.db"), backend))
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        options = ChatOptions(
            session_ref=session,
            personas={"tutor": TUTOR},
            examine=lambda report: iter(["ok  python"]),
        )
        PlainChat(Backstage(services[-1], Sampling()), options).run()
        return capsys.readouterr().out.splitlines()

    yield run
    for service in services:
        service.close()


def test_a_chat_through_a_pipe_goes_on_in_the_next_one(run: Run) -> None:
    lines = run("one", "two\\", "lines")
    assert "builtin: You said: one" in lines
    assert "builtin: You said: two" in lines
    assert "lines" in lines
    assert lines[-1].startswith("([one, turn 2]")
    again = run()
    assert again[1:] == [
        "(builtin is ready)",
        "Chat: one, turn 2.",
        "You: two",
        "lines",
        "builtin: You said: two",
        "lines",
    ]


def test_a_long_message_of_yesterday_is_not_read_out_to_the_end(run: Run) -> None:
    run("many words " * 1000)
    lines = run()
    said = next(line for line in lines if line.startswith("You: "))
    assert len(said) < 3000
    assert any("characters more; /export FILE writes all." in line for line in lines)


def test_lines_of_another_system_end_where_they_end(run: Run) -> None:
    assert "builtin: You said: one" in run("one\r", "/quit\r", "two")
    assert not [line for line in run() if "\r" in line or "two" in line]


def test_nothing_of_a_terminal_is_written(run: Run) -> None:
    text = "\n".join(run("one", "/help", "/tree", "/sessions", "/params", "/segments"))
    assert "\x1b" not in text
    assert "\r" not in text


def test_every_command_does_something_or_says_why_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "true")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("hello")
    arguments = {
        "edit": "eins",
        "system": "Be brief.",
        "persona": "tutor",
        "set": "seed 7",
        "attach": "note.txt",
        "find": "one",
        "switch": "one",
        "rename": "one",
        "export": "out.json",
        "import": "out.json",
    }
    for command in COMMANDS:
        lines = run("one", f"/{command.slash} {arguments.get(command.id, '')}".rstrip())
        assert not any("Unexpected" in line for line in lines), command
        (tmp_path / "out.json").unlink(missing_ok=True) if command.id == "import" else None


def test_commands_change_the_chat(run: Run, made: list[FakeBackend]) -> None:
    lines = run(
        "/persona tutor",
        "one",
        "/edit eins",
        "/regen",
        "two",
        "/undo",
        "/fork 1",
        "/fork",
        "/cache",
        "/stats",
        "/delete",
        "yes",
    )
    assert made[0].requests[-1].sampling.temperature == 0.5
    assert made[0].requests[-1].messages[0].text == "Ask back."
    text = "\n".join(lines)
    assert "Your message was: two" in text
    assert "Turn 1: eins. Going on: instant (RAM)." in text
    assert "prompt tokens" in text
    assert "RAM: " in text


def test_what_makes_the_chat_slow_is_said_once(run: Run) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = run(f"/system Today is {today}.", "one", "two", "/lint")
    assert lines.count("(This chat: date in system prompt. /lint tells more.)") == 1
    assert any(f"the date, “{today}”, changes by itself." in line for line in lines)


def test_every_command_has_a_handler() -> None:
    assert all(hasattr(PlainActions, f"_do_{command.id}") for command in COMMANDS)


def test_undo_after_a_failed_turn_goes_back_over_that_turn_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    run("one", "two")
    begin = FakeBackend.start

    def start(backend: FakeBackend) -> None:
        backend.fail_at = "answer"
        begin(backend)

    monkeypatch.setattr(FakeBackend, "start", start)
    lines = run(f"/attach {path}", "three", "/undo")
    assert "Error: The fake model failed. Try again." in lines
    assert lines[lines.index("Chat: one (fork), turn 2.") + 1] == "You: two"
    assert "Your message was: three" in lines
    assert "Its files go with the next message." in lines


def test_files_of_a_message_that_was_taken_back_go_with_the_next_one(
    run: Run, made: list[FakeBackend], tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    run(f"/attach {tmp_path}/a.txt", "one", f"/attach {tmp_path}/b.txt", "/undo", "eins", "zwei")
    asked = [request.messages[-1].text for request in made[0].requests]
    assert [("a.txt" in text, "b.txt" in text) for text in asked] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert asked[1].endswith("eins")


def test_files_for_a_message_that_was_not_accepted_are_kept(
    run: Run, made: list[FakeBackend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("hello")
    add_user = SessionStore.add_user
    failures = [StorageError("The disk is full.", "")]

    def full(store: SessionStore, *arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return add_user(store, *arguments)

    monkeypatch.setattr(SessionStore, "add_user", full)
    run(f"/attach {tmp_path}/a.txt", "one", "one")
    assert "hello" in made[0].requests[-1].messages[-1].text


def test_the_mode_of_the_history_is_shown_and_set(run: Run) -> None:
    lines = run("one", "/mode", "/mode append", "/mode", "/mode x")
    assert [line.split(":")[0] for line in lines[-4:]] == ["canonical", "append", "append", "Error"]


def test_a_file_goes_with_the_next_message(
    run: Run, made: list[FakeBackend], tmp_path: Path
) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    lines = run(f"/attach {path}", "What is it?", "/attach", "/attach /no/such")
    asked = made[0].requests[0].messages[-1].text
    assert asked == "File note.txt:\n```\nhello\n```\n\nWhat is it?"
    assert "[file note.txt: 5 B] goes with the next message." in lines
    assert any(line.startswith("Error: The file") for line in lines)


def test_the_model_is_changed(run: Run, made: list[FakeBackend]) -> None:
    lines = run("one", "/model builtin", "/model bulitin", "two")
    assert len(made) == 2
    assert made[1].requests[0].messages[-1].text == "two"
    assert any("Did you mean 'builtin'?" in line for line in lines)


def test_what_is_wrong_is_said_in_one_line(run: Run) -> None:
    lines = run("/frok", "/continue", "/fork x", "/set seed x")
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 4
    assert "Did you mean /fork?" in errors[0]


def test_a_number_may_have_any_length(run: Run) -> None:
    far = "9" * 5000
    commands = [f"/{words} {far}" for words in ("fork", "lens", "lens turns layer", "variant")]
    commands += [f"/tree switch {far}", f"/set top_k {far}", f"/set temperature {far}"]
    lines = run("one", "/regen", *commands, "/fork ²", "still here")
    assert "builtin: You said: still here" in lines


def test_a_session_can_be_named(run: Run) -> None:
    run("one", "/new second", "two")
    assert "Chat: one, turn 1." in run(session="one")


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(
    run: Run, made: list[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = FakeBackend.start

    def start(backend: FakeBackend) -> None:
        gate = backend.gate("delta:1")

        def interrupt() -> None:
            gate.arrived.wait(10)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        begin(backend)

    monkeypatch.setattr(FakeBackend, "start", start)
    lines = run("one and two")
    assert "builtin: You" in lines
    assert lines[-1] == "(stopped; /continue goes on)"


def test_ctrl_c_while_waiting_asks_before_it_quits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *arguments: int) -> str:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr(io, "StringIO", Interrupted)
    lines = run()
    assert lines.count("Press Ctrl+C again to quit.") == 1


def test_an_answer_is_spoken_in_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    stream = SpokenStream(lambda: "model")
    for piece in ("Hello th", "ere. How", " are\x1b[31m you?", " Fine"):
        stream.write(piece)
        said = capsys.readouterr().out
        assert said in ("", "model: Hello there. ", "How are[31m you? ")
    stream.end()
    assert capsys.readouterr().out == "Fine\n"


def test_branches_and_answers_are_walked_by_their_numbers(run: Run) -> None:
    lines = run(
        "one",
        "two",
        "/fork 1",
        "zwei",
        "/tree",
        "/tree switch 3",
        "/regen",
        "/variant",
        "/variant 9",
    )
    rows = [line for line in lines if line.startswith("Row ")]
    assert [row.split(",")[0] for row in rows] == ["Row 1", "Row 2", "Row 3"]
    assert "Chat: one, turn 2." in lines
    assert "Answer 1 of 2." in lines
    assert any("Say a number from 1 to 2." in line for line in lines)
    lines = run("/tree delete 9", "/tree delete 2", "yes", "/tree", "/tree keep 1", "yes")
    assert lines.count("Error: No branch is meant by that. /tree lists them with their rows.") == 1
    assert "Delete 2 messages and 1 chat, for good? Type yes: Chat: one, turn 2." in lines


def test_what_was_read_is_told_turn_by_turn(run: Run) -> None:
    lines = run("one", "two", "/lens")
    assert any("tokens of context" in line for line in lines)
    assert any(line.startswith("Turn 2, “two”: ") and line.endswith("in RAM.") for line in lines)


def test_memory_is_written_to_disk_and_files_are_verified(
    run: Run, made: list[FakeBackend]
) -> None:
    lines = run("one", "/spill", "/segments spill ram-0", "/segments verify", "/segments")
    assert made[0].spilled == [None]
    assert "What is in memory alone is being written to disk." in lines
    assert "Error: No segment is meant by that. /segments lists them." in lines
    assert "Nothing is on disk yet." in lines
