"""Long pastes, taken whole however the terminal cuts them; and the end of the terminal itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from textual.drivers._writer_thread import WriterThread
from textual.events import Key, Paste

from chatcache.terminal.sequences import Sequences
from chatcache.tui.driver import LastingFile
from chatcache.tui.reports import Reports

ROOT = Path(__file__).parents[2]
START, END = "\x1b[200~", "\x1b[201~"
TYPED = f"a{START}two\rlines{END}b"


def read(*pieces: str) -> list[str]:
    sequences, reports = Sequences(), Reports()
    found = []
    for piece in pieces:
        for token in sequences.feed(piece, 0):
            for message in reports.messages(token):
                if isinstance(message, Paste):
                    found.append(f"paste {message.text!r}")
                elif isinstance(message, Key):
                    found.append(message.key)
    return found


def test_a_paste_is_one_message_between_the_keys() -> None:
    assert read(TYPED) == ["a", "paste 'two\\rlines'", "b"]
    assert read(f"{START}\x1b[31m\x00{END}") == ["paste '\\x1b[31m'"]
    assert read(f"{START}{END}x") == ["paste ''", "x"]
    assert read(f"{START}one{END}{START}two{END}") == ["paste 'one'", "paste 'two'"]


@pytest.mark.parametrize("cut", range(1, len(TYPED)))
def test_it_may_come_in_any_two_pieces(cut: int) -> None:
    assert read(TYPED[:cut], TYPED[cut:]) == ["a", "paste 'two\\rlines'", "b"]


def test_it_may_come_in_many_pieces() -> None:
    text = "some words\r" * 5000
    sent = f"{START}{text}{END}"
    pieces = [sent[at : at + 4096] for at in range(0, len(sent), 4096)]
    assert read(*pieces, "x") == [f"paste {text!r}", "x"]


def test_a_paste_that_has_not_ended_is_waited_for() -> None:
    assert read("a", f"{START}half") == ["a"]


def test_a_terminal_that_is_gone_stops_nobody_who_writes_to_it() -> None:
    """As when a window is closed in the middle of an answer."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        writer = WriterThread(LastingFile(terminal))  # type: ignore[arg-type]
        writer.start()
        os.close(master)

        def write_on() -> None:
            for number in range(1000):
                writer.write(f"piece {number}")
            writer.stop()

        writing = threading.Thread(target=write_on, daemon=True)
        writing.start()
        writing.join(30)
        assert not writing.is_alive()
        with pytest.raises(OSError, match="Input/output error"):
            terminal.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, slave)  # what is left in the buffer can be written when it is closed
        os.close(null)


def test_a_terminal_that_ends_without_a_signal_ends_the_program() -> None:
    """As where it is not the controlling one: the kernel sends no SIGHUP then."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "chatcache"]
    program = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""
    while b"loaded" not in shown:
        shown += os.read(master, 4096)
    os.close(master)
    try:
        program.wait(60)
    except subprocess.TimeoutExpired:
        program.kill()
        raise


def test_a_browser_is_read_as_a_terminal_is(tmp_path: Path) -> None:
    """Its packets have a letter and a length before what was typed, or what happened."""

    def packet(kind: str, text: str) -> bytes:
        data = text.encode()
        return kind.encode() + len(data).to_bytes(4, "big") + data

    drafts = tmp_path / "drafts.json"
    environ = os.environ | {"TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver"}
    command = [sys.executable, "-m", "tests.tui.terminal_app", str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environ
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        shown = b""
        while b"ready" not in shown:
            shown += os.read(program.stdout.fileno(), 4096)
        for text in ("\x1b[97;1:3u\x1b[99999999999u\x1b[0;;26126:26163u", "a\rb\r"):
            program.stdin.write(packet("D", text))
        program.stdin.flush()
        reading = threading.Thread(target=program.stdout.read, daemon=True)
        reading.start()
        end = time.monotonic() + 60
        while not (drafts.exists() and "b" in drafts.read_text()):
            assert time.monotonic() < end
            time.sleep(0.05)
        program.stdin.write(packet("M", json.dumps({"type": "quit"})))
        program.stdin.flush()
        assert program.wait(60) == 0
        reading.join(60)
    assert list(json.loads(drafts.read_text()).values()) == ["明昳a\nb\n"]
