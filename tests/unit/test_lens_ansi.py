"""A page of the lens on a terminal that has colours."""

from __future__ import annotations

import re

import pytest

from chatcache.frontend.lens.ansi import WORDS, as_coloured_text, has_colours
from chatcache.frontend.lens.exports import as_text
from chatcache.frontend.lens.page import Marked, Page, line

PAGE = Page(
    "T",
    (
        line(Marked("R 93", "ram"), "  ", Marked("cut", "cut")),
        (),
        line("plain \x1b[2J", Marked("", "ram"), Marked("chosen ", "chosen")),
    ),
    (),
)
CODE = re.compile(r"\x1b\[[\d;]*m")


def test_colours_change_no_letter() -> None:
    drawn = as_coloured_text(PAGE)
    assert drawn.splitlines()[0] == "\x1b[32mR 93\x1b[0m  \x1b[1;31mcut\x1b[0m"
    # What came from a model or a paste is no code, and nothing is left switched on.
    assert [text.rstrip() for text in CODE.sub("", drawn).splitlines()] == as_text(
        PAGE
    ).splitlines()
    assert all(row.count("\x1b[") % 2 == 0 for row in drawn.splitlines())


def test_every_mark_has_codes() -> None:
    for mark in WORDS:
        assert as_coloured_text(Page("T", (line(Marked("x", mark)),), ())).startswith("\x1b[")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_who_wants_no_colours_gets_none(environ: dict[str, str], expected: bool) -> None:
    assert has_colours(environ) is expected
