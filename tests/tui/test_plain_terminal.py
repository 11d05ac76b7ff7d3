"""Plain mode on a real terminal: long lines, pastes, arrow keys, and what is left behind."""

from __future__ import annotations

import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tui.ptys import ChatOnPty

LINES = ["def f():", "    return 1", "", "f()", "the end"]


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[ChatOnPty]:
    chat = ChatOnPty(tmp_path, "--plain")
    yield chat
    chat.close()


def test_a_line_has_no_limit(chat: ChatOnPty) -> None:
    line = "a line of more than the 4,095 bytes that a terminal keeps. " * 200
    chat.type(line)
    chat.type("\r")
    chat.until_sent(line)


@pytest.mark.parametrize("mark", [("", ""), ("\x1b[200~", "\x1b[201~")])
def test_a_paste_of_lines_is_one_message(chat: ChatOnPty, mark: tuple[str, str]) -> None:
    begin, end = mark
    chat.type(f"{begin}{chr(13).join(LINES)}{end}", 0.5)
    chat.type("\r")
    chat.until_sent("\n".join(LINES))


def test_a_pasted_command_is_a_message(chat: ChatOnPty) -> None:
    chat.type("\x1b[200~/quit\x1b[201~", 0.3)
    chat.type("\r")
    chat.until_sent("/quit")


def test_keys_edit_the_line(chat: ChatOnPty) -> None:
    chat.keys("bc 🇩🇪x")
    chat.type("\x7f\x7f\x01a\x1b[C\x1b[Cd\x1b[1;1:3A\x1b[99999999999u\x05!\r")
    chat.until_sent("abcd !")
    chat.keys("two")
    chat.type("\x1b[A\x1b[B", 0.1)
    chat.type("\x1b[A\x1b[D\x7f\r")
    chat.until_sent("abcd !", "abcd!")


def test_what_is_typed_during_an_answer_is_the_next_line(chat: ChatOnPty) -> None:
    chat.type("one\rtwo")
    chat.until_sent("one")
    chat.type(" three\r")
    chat.until_sent("one", "two three")


def test_a_draft_outlives_the_program(tmp_path: Path) -> None:
    for word, number in (("a", signal.SIGKILL), ("b", signal.SIGTERM), ("c", signal.SIGHUP)):
        chat = ChatOnPty(tmp_path, "--plain")
        chat.type(f"half {word} ")
        chat.until_shown(f"half {word} ")
        if number == signal.SIGKILL:
            chat.until_draft("half a ")
        chat.program.send_signal(number)
        chat.wait()
        if number != signal.SIGKILL:
            assert chat.modes & (termios.ICANON | termios.ECHO)
        chat.close()
    chat = ChatOnPty(tmp_path, "--plain")
    chat.until_shown("half a half b half c ")
    chat.type("more\r")
    chat.until_sent("half a half b half c more")
    chat.until_draft("")
    chat.close()


def test_ctrl_c_drops_the_line_and_ctrl_d_ends(chat: ChatOnPty) -> None:
    chat.keys("nothing")
    chat.type("\x03")
    chat.until_shown("Press Ctrl+C again to quit.")
    chat.type("one\r")
    chat.until_sent("one")
    chat.until_shown("You said: one")
    chat.type("\x04")
    assert chat.wait() == 0
    assert chat.modes & (termios.ICANON | termios.ECHO)


def test_a_dumb_terminal_gets_no_sequence(tmp_path: Path) -> None:
    chat = ChatOnPty(tmp_path, "--plain", TERM="dumb")
    chat.type("onf\x7fe\r")
    chat.until_sent("one")
    chat.type("\x04")
    chat.wait()
    assert b"\x1b" not in chat.shown
    chat.close()
