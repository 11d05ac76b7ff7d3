"""What a terminal sends: where it is cut, what it means, and that nothing typed is lost."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import tty
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.events import Key, Paste

from chatcache.terminal import clusters
from chatcache.terminal.keyboard import Keyboard
from chatcache.terminal.keys import KeyPress, decode
from chatcache.terminal.sequences import Pasted, Sequence, Sequences, Token, Typed
from chatcache.tui.reports import Reports
from tests.slow import keyboard_fuzz


def read(*parts: str | float) -> list[Token]:
    """The tokens of texts with pauses between them, and of a long pause at the end."""
    sequences, now = Sequences(), 0.0
    tokens: list[Token] = []
    for part in parts:
        if isinstance(part, str):
            tokens += sequences.feed(part, now)
        else:
            now += part
            tokens += sequences.tick(now)
    for pause in (0.2, 5.0, 5.0):
        now += pause
        tokens += sequences.tick(now)
    return tokens


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_nothing_is_raised_and_no_typed_character_is_lost(seed: int) -> None:
    keyboard_fuzz.check(2000, seed)


def test_a_real_terminal_loses_nothing_either() -> None:
    typist, end = keyboard_fuzz.Typist(7), "\x1b[200~the end\x1b[201~"
    master, slave = os.openpty()
    tty.setraw(slave)
    tokens: list[Token] = []

    def read_all() -> None:
        keyboard = Keyboard(slave)
        with contextlib.closing(keyboard):
            while not any(
                isinstance(token, Pasted) and "the end" in token.text for token in tokens
            ):
                tokens.extend(keyboard.read(0.1) or [])

    reading = threading.Thread(target=read_all, daemon=True)
    reading.start()
    expected = ""
    for _ in range(300):
        typed = typist.typed()
        expected += typed
        os.write(master, typist.sequence() + typed.encode())
        time.sleep(typist.random.choice((0.0, 0.0, 0.002, 0.03)))
    time.sleep(2.5)  # a paste that was begun among them is given up
    os.write(master, end.encode())
    reading.join(60)
    assert not reading.is_alive()
    os.close(master)
    os.close(slave)
    reports = Reports()
    written = ""
    for message in reports.read(tokens):
        if isinstance(message, Paste):
            written += message.text
        elif isinstance(message, Key) and message.is_printable:
            written += message.character or ""
    assert "".join(c for c in written if c in keyboard_fuzz.TYPED) == expected


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (["one\rtwo"], [Typed("one\rtwo")]),
        (["hello\r"], [Typed("hello\r")]),
        (["a\nb\r"], [Typed("a\nb\r")]),
        (["line1\rline2\r"], [Pasted("line1\rline2\r")]),
        (["one\rand much more of it"], [Pasted("one\rand much more of it")]),
        (["a\tb\tcolumns of a table"], [Pasted("a\tb\tcolumns of a table")]),
        (["1\r2\r3\r", 0.05, "4\r"], [Pasted("1\r2\r3\r"), Pasted("4\r")]),
        (["1\r2\r3\r", 0.05, "\r"], [Pasted("1\r2\r3\r"), Typed("\r")]),
        (["\x15hello"], [Typed("\x15"), Typed("hello")]),
        (["\x1b"], [Sequence("\x1b")]),
        (["\x1b", 0.15, "x"], [Sequence("\x1b"), Typed("x")]),
        (["\x1b", 0.05, "x"], [Sequence("\x1bx")]),
        (["\x1b[0;;26126:2616", 0.15, "3u"], [Sequence("\x1b[0;;26126:26163u")]),
        (["\x1b", 0.15, "[97;1:3u"], [Sequence("\x1b"), Sequence("\x1b[97;1:3u")]),
        (["\x1b", 0.15, "[200~a\rb\x1b[201~"], [Sequence("\x1b"), Pasted("a\rb")]),
        (["\x1b[1;", 0.15, "hello"], [Typed("hello")]),
        (["\x1b[1;5"], []),
        (["\x1b[1;5", 0.15, "12"], [Typed("12")]),
        (["\x1b]11;rgb:00/00/00\x07x"], [Typed("x")]),
        (["\x1b]11;rgb:0", "0/00/00\x1b\\x"], [Typed("x")]),
        (["\x1b]11;rgb:0", 0.3, "0/00/00\x1b\\x"], [Typed("x")]),
        (["\x1b[<35;1", 0.3, "2;7Mx"], [Sequence("\x1b[<35;12;7M"), Typed("x")]),
        (["\x1bPerhaps"], [Sequence("\x1bP"), Typed("erhaps")]),
        (["\x1b[200~never ended", 3.0, "typed"], [Pasted("never ended"), Typed("typed")]),
        (["\x1b[200~slow", 3.0, "er\rx\x1b[201~y"], [Pasted("slow"), Pasted("er\rx"), Typed("y")]),
        (["\x1b[M !!x"], [Sequence("\x1b[M !!"), Typed("x")]),
    ],
)
def test_what_comes_is_cut_where_it_ends(sent: list[str | float], found: list[Token]) -> None:
    assert read(*sent) == found


@pytest.mark.parametrize(
    ("sequence", "names"),
    [
        ("\x1b[97;1:3u", []),
        ("\x1b[97;1:2u", ["a"]),
        ("\x1b[97:65;2u", ["A"]),
        ("\x1b[97;65u", ["A"]),
        ("\x1b[1089::99;5u", ["ctrl+c"]),
        ("\x1b[1089;5u", ["ctrl+c"]),
        ("\x1b[1081:1049:113;6u", ["ctrl+shift+q"]),
        ("\x1b[968;5u", ["ctrl+c"]),
        ("\x1b[99;69u", ["ctrl+c"]),
        ("\x1b[64;7;64u", ["@"]),
        ("\x1b[0;;128512u", ["😀"]),
        ("\x1b[0u", []),
        ("\x1b[57441;2u", []),
        ("\x1b[57404u", ["5"]),
        ("\x1b[57414u", ["enter"]),
        ("\x1b[13;2u", ["shift+enter"]),
        ("\x1b[27;2;13~", ["shift+enter"]),
        ("\x1b[1;3A", ["alt+up"]),
        ("\x1b[1;1:3A", []),
        ("\x1b[5D", ["ctrl+left"]),
        ("\x1bOM", ["enter"]),
        ("\x1b[1114112u", None),
        ("\x1b[55296u", None),
        ("\x1b[1u", None),
        ("\x1b[99999999999;5u", None),
        (f"\x1b[{'9' * 5000}u", None),
        ("\x1b[x", None),
    ],
)
def test_a_key_report_has_names(sequence: str, names: list[str] | None) -> None:
    presses = decode(sequence)
    assert names == (None if presses is None else [press.name for press in presses])


def test_text_of_an_input_method_is_written() -> None:
    assert decode("\x1b[0;;26126:26163u") == [KeyPress("明", "明"), KeyPress("昳", "昳")]


WHOLE = ["🇩🇪", "👨‍👩‍👧", "❤\ufe0f", "e\u0301", "각", "👍🏽", "क्षि", "🏴\U000e0067\U000e007f"]


@pytest.mark.parametrize("character", WHOLE, ids=lambda text: unicodedata.name(text[0]))
def test_what_people_take_for_one_character_is_one(character: str) -> None:
    text = f"a{character}b"
    behind = 1 + len(character)
    assert clusters.before(text, behind) == 1
    assert clusters.after(text, 1) == behind
    assert {clusters.whole(text, at) for at in range(2, behind + 1)} == {behind}
    assert clusters.before(text, 1) == 0


@given(st.text(max_size=30), st.integers(0, 30))
def test_walking_over_a_text_reaches_both_ends(text: str, at: int) -> None:
    at = clusters.whole(text, min(at, len(text)))
    assert at == 0 or clusters.after(text, clusters.before(text, at)) == at
    assert clusters.after(text, len(text)) == len(text)
