"""Long pastes: taken whole, however the terminal cuts them into pieces."""

from __future__ import annotations

import pytest
from textual.events import Key, Paste

from chatcache.tui.driver import PasteParser

START, END = "\x1b[200~", "\x1b[201~"
TYPED = f"a{START}two\rlines{END}b"


def read(*pieces: str) -> list[str]:
    parser = PasteParser()
    found = []
    for piece in pieces:
        for message in parser.feed(piece):
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


def test_the_end_of_input_ends_it() -> None:
    assert read("a", f"{START}half", "") == ["a"]
