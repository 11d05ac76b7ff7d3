"""The lens without a screen: its object, its words, its pictures and its files."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.color import Color

from chatcache import formatting as fmt
from chatcache.backends.questions import Tokenize, TokenPiece, TokenPieces
from chatcache.backends.usage import CacheReport, Figures, Timings, Usage
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.errors import NotFoundError, UnavailableError, UsageError
from chatcache.frontend.lens import png, svg
from chatcache.frontend.lens.answers import asked
from chatcache.frontend.lens.exports import as_text, export_name, export_page
from chatcache.frontend.lens.lens import Lens
from chatcache.frontend.lens.page import Mark, Marked, Page, flow, line, text_of
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.spoken import opened, said
from chatcache.frontend.lens.views import VIEW_NAMES
from chatcache.token_ids import TokenIds
from chatcache.tui.look.contrast import ratio
from tests.fakes import FakeBackend

HOSTILE = "\x1b[31m[bold]x[/] \x00\ud800\ufffe</text>&<script> 日本語 e\u0301 ▃▒█ \u202e"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[LensSource]:
    """A chat of two turns, with the backend that answered it."""
    service = ChatService(SessionStore(tmp_path / "chats.db"), FakeBackend(starts_ready=True))
    assert service.backend is not None
    service.backend.start()
    session = service.create_session("tides", "Be brief.")
    for text in ("one", "two"):
        for _ in service.send(session.session_id, text):
            pass
    yield LensSource(service, session.session_id)
    service.close()


def figures(cached: int, computed: int, cold_ms: float | None = 900.0) -> Figures:
    usage = Usage(cached + computed, 7, cached, 0)
    reason = "new_user_turn" if cached else "cold_start"
    report = CacheReport("hit", reason, cached, "Told.", cold_ms)
    return Figures(usage, Timings(0.0, 1.0, 20.0, 5.0, None, None), report)


# The object


def test_the_first_view_answers_what_is_asked_first(source: LensSource) -> None:
    page = Lens(source).page_now(80)
    text = as_text(page)
    counts = source.figures()[2]
    assert f"Why was turn 2 quick?  {counts.cached_tokens} of its {counts.prompt_tokens}" in text
    assert f"{counts.computed_tokens} prompt tokens from position" in text
    assert "What would be slow?" in text
    assert page.data["turns"][1]["cached_tokens"] == counts.cached_tokens
    assert page.data["turns"][1]["computed_tokens"] == counts.computed_tokens
    assert set(page.data["answers"]) == {"quick", "computed", "slow"}


def test_facts_are_read_once_until_something_changes(source: LensSource) -> None:
    lens = Lens(source)
    assert lens.page(80) is None
    read = lens.reading()
    assert read is not None
    assert lens.reading() is None
    read()
    assert lens.page(80) is not None
    assert lens.reading() is None
    lens.refresh()
    assert lens.reading() is not None


def test_while_a_model_is_asked_keys_go_on_from_where_one_is(source: LensSource) -> None:
    lens = Lens(source, "attention")
    read = lens.reading()
    assert read is not None
    read()
    assert lens.press("home", 80)
    asking = lens.reading()
    assert asking is not None
    assert lens.press("right", 80)
    assert lens.press("right", 80)
    assert lens.state.token == 2
    assert lens.reading() is None  # one question of a view at a time
    asking()
    assert lens.page(80) is None  # token 0 was asked for
    last = lens.reading()
    assert last is not None
    last()
    assert lens.page(80) is not None


def test_what_cannot_be_read_is_a_page_too(
    source: LensSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UnavailableError("It is away.", "Wait for it.")

    monkeypatch.setattr(source, "points", fail)
    lens = Lens(source)
    read = lens.reading()
    assert read is not None
    read()
    page = lens.page(80)
    assert page is not None
    assert page.sentences == ("It is away.", "Wait for it.")
    with pytest.raises(UnavailableError):
        lens.page_now(80)


def test_views_and_turns_go_around_and_stop_at_their_ends(source: LensSource) -> None:
    lens = Lens(source)
    seen = []
    for _ in VIEW_NAMES:
        seen.append(lens.view.name)
        lens.step(1)
    assert tuple(seen) == VIEW_NAMES
    assert lens.view.name == VIEW_NAMES[0]
    assert not lens.step_turn(1)
    assert lens.step_turn(-1)
    assert lens.state.turn == 1
    assert not lens.step_turn(-1)
    with pytest.raises(NotFoundError, match="no turn 3"):
        lens.choose_turn(3)
    with pytest.raises(UsageError, match="no view 'trun'") as caught:
        lens.show("trun")
    assert "'turns'" in caught.value.hint


def test_looking_is_not_having_seen(source: LensSource, tmp_path: Path) -> None:
    """Another program may go on with the chat while its lens is open: what is sent next still
    follows what this one has shown."""
    service = source.service
    shown = service.transcript(source.session_id)[-1]
    backend = FakeBackend(starts_ready=True)
    backend.start()
    with ChatService(SessionStore(tmp_path / "chats.db"), backend) as other:
        for _ in other.send(source.session_id, "three"):
            pass
    assert len(source.messages()) == 7
    for _ in service.send(source.session_id, "four"):
        pass
    before, asked, _ = service.transcript(source.session_id)[-3:]
    assert (before.node_id, asked.text) == (shown.node_id, "four")


# Answers


def test_a_turn_that_reused_nothing_says_why() -> None:
    quick, computed, slow = asked(1, figures(0, 60), 67)
    assert quick.question == "Why was turn 1 not quicker?"
    assert "cold start" in quick.answer
    assert computed.answer.startswith("60 prompt tokens. Told. Then 7 tokens")
    assert "all 67 tokens" in slow.answer
    assert "about 1.00 s" in slow.answer


def test_a_turn_that_was_slow_in_spite_of_reuse_is_not_called_quick() -> None:
    quick = asked(2, figures(50, 10, 5.0), 67)[0]
    assert quick.question == "Why was turn 2 slow?"
    assert "the machine was busy" in quick.answer


def test_nothing_is_invented_where_nothing_is_known() -> None:
    answers = asked(2, figures(50, 10, None), 67)
    assert all("about" not in part.answer for part in answers)
    unanswered = asked(3, None, 67)
    assert unanswered[0].answer == "It was not answered to its end."
    *_, nothing_read = asked(1, None, 0)
    assert "0 tokens" not in nothing_read.answer


# Words


def test_what_is_typed_behind_lens(source: LensSource) -> None:
    lens = opened(source, ["turns", "1", "token", "5", "layer", "2", "head", "0", "ids"])
    state = lens.state
    assert (state.turn, state.token, state.layer, state.head, state.has_ids) == (1, 5, 2, 0, True)
    for wrong in ("turns what", "turns token", "turns turn x"):
        with pytest.raises(UsageError) as caught:
            opened(source, wrong.split())
        assert "/lens [VIEW]" in caught.value.hint
    with pytest.raises(NotFoundError):
        opened(source, ["9"])


def test_two_tokenizers_on_what_was_asked(source: LensSource) -> None:
    backend = source.service.backend
    assert isinstance(backend, FakeBackend)
    with pytest.raises(UsageError, match="model to compare with is missing"):
        opened(source, ["beside"])
    lens = opened(source, ["beside", "smollm2"])
    with pytest.raises(UnavailableError):
        lens.page_now(80)
    backend.study_answers[Tokenize] = TokenPieces(
        (TokenPiece(0, "tw"), TokenPiece(1, "o")), TokenIds([0, 1]), "chars"
    )
    lens.refresh()
    page = lens.page_now(80)
    assert page.data["text"] == "two"
    assert page.data["groups"] == [{"a": ["tw"], "b": ["tw"]}, {"a": ["o"], "b": ["o"]}]
    lens.press("mode", 80)  # back to the tokens of the turn
    assert lens.state.tokenizer == ""
    assert "cut" in lens.page_now(80).data


def test_a_view_in_sentences(source: LensSource) -> None:
    sentences = list(said(source, ["turns", "1"]))
    assert sentences[0].startswith("Why was turn 1 not quicker? ")
    assert any(sentence.startswith("Turn 2, “two”: ") for sentence in sentences)


# Lines


@given(st.text(), st.integers(1, 40))
def test_flowing_loses_nothing_and_fits(text: str, width: int) -> None:
    lines = flow(text, width)
    assert "".join(lines).replace(" ", "") == fmt.one_line(text).replace(" ", "")
    assert all(fmt.width(each) <= max(2, width) for each in lines)


# Pictures


def hostile_page() -> Page:
    marks: tuple[Mark, ...] = ("", "ram", "disk", "computed", "written", "control", "cut", "chosen")
    lines = [line(Marked(HOSTILE, mark), Marked("hot", mark, 1.0)) for mark in marks]
    return Page("Hostile </title>", (*lines, ()), (HOSTILE,), {"text": "x"})


@given(st.text(), st.sampled_from([None, -1.0, 0.5, 2.0]))
def test_every_picture_is_whole_whatever_is_in_it(text: str, heat: float | None) -> None:
    page = Page(text, (line(Marked(text, "ram", heat)),), ())
    root = ElementTree.fromstring(svg.svg(page, text))
    assert root.tag.endswith("svg")


def test_text_stands_where_it_stands_on_a_terminal() -> None:
    page = Page("Row", (line("ab ", Marked("日本", "ram"), Marked(" c", "disk")),), ())
    found = re.findall(r'<text x="([\d.]+)".*?textLength="([\d.]+)" .*?>(.+?)<', svg.svg(page))
    cells = [
        (round((float(x) - svg.MARGIN) / svg.CELL), round(float(length) / svg.CELL), text)
        for x, length, text in found
    ]
    assert cells == [(0, 2, "ab"), (3, 4, "日本"), (8, 1, "c")]


def test_blocks_are_drawn_and_commands_of_a_terminal_are_not() -> None:
    drawn = svg.svg(hostile_page())
    assert "▃" not in drawn
    assert 'fill-opacity="0.50"' in drawn
    assert "\x1b" not in drawn
    assert "<script>" not in drawn


@pytest.mark.parametrize("palette", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_pictures_can_be_read_on_light_and_dark(palette: svg.Palette) -> None:
    behind = Color.parse(palette.background)
    for colour in (palette.text, *palette.marks.values()):
        assert ratio(Color.parse(colour), behind) >= 4.5, colour
    hottest = behind.blend(Color.parse(palette.heat), svg.HOTTEST)
    assert ratio(Color.parse(palette.text), hottest) >= 4.5


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_png_has_what_the_svg_has(is_dark: bool) -> None:
    image = pytest.importorskip("PIL.Image")
    import io

    page = hostile_page()
    picture = image.open(io.BytesIO(png.png(page, is_dark=is_dark)))
    assert picture.size[0] >= 2 * svg.cells_of(page) * svg.CELL
    assert len(picture.getcolors(1 << 20)) > 10  # text, shades and backgrounds


def test_without_pillow_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UnavailableError) as caught:
        png.png(hostile_page())
    assert "pip install 'chatcache[picture]'" in caught.value.hint


# Files


@pytest.mark.parametrize("suffix", ["svg", "json", "txt"])
def test_a_page_is_written_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "there" / f"page.{suffix}"
    path.parent.mkdir()
    page = Page("Page", (line("a  ", Marked("b", "ram")),), ("a b",), {"a": 1})
    assert str(path) in export_page(page, str(path))
    content = path.read_text()
    if suffix == "json":
        assert json.loads(content) == {"a": 1}
    assert "b" in content or suffix == "json"
    with pytest.raises(UsageError, match="is there already"):
        export_page(page, str(path))
    assert path.read_text() == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_page_is_not_written_where_it_cannot_be(tmp_path: Path) -> None:
    for name in ("page.gif", "no/such/directory.svg"):
        with pytest.raises(UsageError):
            export_page(hostile_page(), str(tmp_path / name))
    assert not list(tmp_path.glob("*.gif"))


def test_a_name_to_suggest_is_one_of_a_file() -> None:
    assert export_name("../a b/c?", "turns") == "a-b-c-turns.svg"
    assert export_name("///", "tree") == "chat-tree.svg"


def test_lines_as_text_have_no_commands_for_a_terminal() -> None:
    assert "\x1b" not in as_text(hostile_page())
    assert text_of(line("a", Marked("b"))) == "ab"
