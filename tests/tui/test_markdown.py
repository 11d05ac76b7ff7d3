"""Answers as they grow; their tables: columns as meant, wrapped where they are wide, never cut."""

from __future__ import annotations

import pytest
from textual.content import Content

from chatcache.tui.look.markdown import ChatMarkdown, make_parser
from chatcache.tui.look.tables import Table, lines
from chatcache.tui.widgets.answer import AnswerMessage
from tests.fakes import FakeBackend
from tests.tui.conftest import Bench

ALIGNED = "| a | bb | cc |\n|:--|:-:|--:|\n| long one | x | 1 |\n| 日本 | y | 22 |\n"


def table(*rows: str) -> Table:
    headers, *rest = ([Content(cell) for cell in row.split("|")] for row in rows)
    return Table(headers, rest)


async def test_columns_are_aligned_as_the_model_asked(bench: Bench) -> None:
    bench.backend = FakeBackend(starts_ready=True, answers=[ALIGNED])
    async with bench.run() as chat:
        await chat.say("a table")
        shown = [line.split("▏")[0].strip() for line in chat.text.splitlines()]
        assert "a         bb  cc" in shown, chat.text
        start = shown.index("a         bb  cc")
        assert shown[start + 2 : start + 4] == ["long one  x    1", "日本      y   22"]


@pytest.mark.parametrize("width", [12, 20, 33, 60, 200])
def test_no_word_of_a_table_is_lost_at_any_width(width: int) -> None:
    rows = ["name|what it is for|value", "alpha|a long text with many words|12", "beta||3,400"]
    drawn = [line.plain for line in lines(table(*rows), width)]
    assert all(Content(line).cell_length <= width for line in drawn)
    for word in " ".join(rows).replace("|", " ").split():
        assert word in " ".join(" ".join(drawn).split())


def test_what_is_too_narrow_for_columns_is_a_list() -> None:
    drawn = [line.plain for line in lines(table("identifier|meaning", "alphabetic|x"), 16)]
    assert drawn == ["identifier:", "alphabetic", "meaning: x"]


async def test_a_growing_table_stays_one_table(bench: Bench) -> None:
    async with bench.run() as chat:
        await chat.say("one")
        answer = chat.screen.query_one(AnswerMessage)
        body = answer.query_one(ChatMarkdown)
        for end in (10, 30, 45, len(ALIGNED)):
            await body.update("")
            await body.append(ALIGNED[:end])
            await chat.pilot.pause()
        for piece in ("| more | z |", " 7 |\n"):
            await body.append(piece)
            await chat.pilot.pause()
        assert "more      z    7" in chat.text
        assert chat.text.count("long one") == 1


@pytest.mark.parametrize("text", ["It has parts:\n-", "It has parts:\n---\nand more", "One\n==="])
def test_a_sentence_never_flashes_as_a_heading(text: str) -> None:
    kinds = [token.type for token in make_parser().parse(text)]
    assert "heading_open" not in kinds
    assert ("hr" in kinds) == ("---" in text)
