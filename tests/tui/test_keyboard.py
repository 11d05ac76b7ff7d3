"""Real bytes on a real terminal: what is sent, what is kept, and what is never typed."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tui.ptys import ChatOnPty, Pty

CTRL_Q = "\x11"
START, END = "\x1b[200~", "\x1b[201~"


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[ChatOnPty]:
    chat = ChatOnPty(tmp_path)
    yield chat
    chat.close()


def test_enter_gives_one_message_away_and_keeps_what_comes_behind_it(chat: ChatOnPty) -> None:
    chat.type("one\rtwo")
    chat.until_sent("one")
    chat.until_draft("two")
    chat.type("\r")
    chat.until_sent("one", "two")
    chat.type("line1\rline2\rline3\r")
    chat.until_draft("line1\nline2\nline3\n")
    chat.type("\r")
    chat.until_sent("one", "two", "line1\nline2\nline3")
    chat.until_draft("")
    chat.type("def f():\r    return 1 + 2", 0.3)
    chat.type("\r")
    chat.until(lambda: chat.sent[-1] == "def f():\n    return 1 + 2")


def test_reports_of_every_form_are_understood_or_dropped(chat: ChatOnPty) -> None:
    word = "明日晴れる"
    chat.type("\x1b[97;1:3u\x1b[99999999999;5u\x1b[1114112u\x1b[0;5;4:3:2u")
    chat.type(f"\x1b[0;;{':'.join(str(ord(character)) for character in word)}u")
    chat.type("\x1b[0;;12354:12356", 0.15)
    chat.type(":12358u")
    chat.type("\x1b", 0.15)
    chat.type("[57401u")  # a two of the keypad
    chat.type("\x1b[97:65;2u\x1b[?62;c\x1b]11;rgb:0000/0000/0000\x07\x1bP1+r544e\x1b\\")
    chat.type("\u200c\u3000\u00a0")  # what Python takes for unprintable
    chat.until_draft(f"{word}あいう2A\u200c\u3000\u00a0")


def test_shortcuts_work_under_another_layout(chat: ChatOnPty) -> None:
    chat.type("words")
    chat.until_draft("words")
    chat.type("\x1b[1089::99;5u")  # Ctrl+C, with the place of the key
    chat.until_draft("")
    chat.type("\x1b[1089;5u\x1b[1089;5u")  # and without
    assert chat.wait() == 0


def test_quit_under_another_layout(chat: ChatOnPty) -> None:
    chat.type("\x1b[1081;5u")
    assert chat.wait() == 0


def test_a_paste_is_a_message_and_no_command(chat: ChatOnPty) -> None:
    lines = "\n".join(["/delete", *(f"line {number}" for number in range(39))])
    pasted = lines.replace("\n", "\r")
    chat.type("hello\r")
    chat.until_sent("hello")
    chat.type(f"{START}{pasted}{END}", 0.3)
    chat.type("\r")
    chat.until_sent("hello", lines)
    chat.type(f"{START}/new two\rlines{END}", 0.3)
    chat.type("\r")
    chat.until_sent("hello", lines, "/new two\nlines")
    chat.type(f"{START}/quit{END}", 0.3)
    chat.type("\r")
    chat.until(lambda: chat.sent[-1] == "/quit")


def test_what_is_no_command_is_sent(chat: ChatOnPty) -> None:
    texts = [
        "/etc/hosts has a line I do not understand",
        "/* why? */ int main(){}",
        "/no_think 2+2?",
        "/home/u/My\\ File.txt",
        "explain @property",
    ]
    for number, text in enumerate(texts, 1):
        chat.keys(text)
        chat.type("\r")
        chat.until_sent(*texts[:number])


def test_a_draft_outlives_the_program_that_is_killed(tmp_path: Path) -> None:
    chat = ChatOnPty(tmp_path)
    chat.type("half a thought")
    chat.until_draft("half a thought")
    chat.program.send_signal(signal.SIGKILL)
    chat.close()
    chat = ChatOnPty(tmp_path)
    chat.until_shown("half a thought")
    chat.type(" more\r")
    chat.until_sent("half a thought more")
    chat.until_draft("")
    chat.close()


def test_the_next_start_puts_right_what_a_killed_program_left(chat: ChatOnPty) -> None:
    chat.program.send_signal(signal.SIGKILL)
    chat.wait()
    wanted = termios.ICANON | termios.ECHO | termios.ISIG
    assert not chat.modes & wanted
    shown = len(chat.shown)
    chat.start()
    chat.until(lambda: b"ready" in chat.shown[shown:])
    chat.type(CTRL_Q)
    assert chat.wait() == 0
    assert chat.modes & wanted == wanted
    chat.until(lambda: b"\x1b[?1049l" in chat.shown[shown:])
    assert b"\x1b[?1016l" in chat.shown[shown:]


def test_terminals_that_lose_words_are_not_asked_for_reports(tmp_path: Path) -> None:
    shown = []
    for program in ("xterm", "iTerm.app"):
        chat = ChatOnPty(tmp_path, TERM_PROGRAM=program)
        shown.append(chat.shown)
        chat.type(CTRL_Q)
        chat.wait()
        chat.close()
    assert b"\x1b[>5u" in shown[0]
    assert b"u" not in shown[1].split(b"\x1b[?1004h")[1][:8]


CRASH = """
import sys
from chatcache.cli import main
from chatcache.terminal.sequences import Sequences
from chatcache.tui.widgets.composer import Composer

def fail(*arguments):
    raise RuntimeError("nobody expected this")

def feed(self, text, now, feed=Sequences.feed):
    return fail() if text == "\\x0c" else feed(self, text, now)

Composer.action_newline = fail
Sequences.feed = feed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("key", ["\n", "\x0c"], ids=["a key", "the reading"])
def test_whatever_ends_the_program_keeps_the_draft_and_is_told(tmp_path: Path, key: str) -> None:
    places = ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    (tmp_path / "config.toml").touch()
    command = [sys.executable, "-c", CRASH, *places, "--config", str(tmp_path / "config.toml")]
    chat = Pty(command, CHATCACHE_KEEP_ALIVE="0", XDG_STATE_HOME=str(tmp_path))
    try:
        chat.until_shown("loaded")
        chat.type("words that matter", 0.3)
        chat.type(key)
        assert chat.wait() == 1
        chat.until_shown("nobody expected this")
        assert b"Traceback" not in chat.shown
        assert "words that matter" in (tmp_path / "data" / "drafts.json").read_text()
        told = re.search(rb"Please report it with (\S+)\.\s", chat.shown)
        assert told is not None
        assert "nobody expected this" in Path(os.fsdecode(told[1])).read_text()
    finally:
        chat.close()
