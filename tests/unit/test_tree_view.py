"""The view of the tree: one line per edge, at any width, and each of its last changes as a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece, TreeShape
from chatcache.cache.views import TreeEdge
from chatcache.frontend.lens import tree_view
from chatcache.frontend.lens.page import Page, text_of
from chatcache.frontend.lens.tree_view import NOW, TreeFacts, TreeState
from chatcache.token_ids import TokenIds
from tests.kvfakes import BYTES_PER_TOKEN, Bench, ids_of

SYSTEM = "You are kind. "
A = (SYSTEM, "Hello! ", "Hi. ")
B = (SYSTEM, "Help me. ", "Yes. ")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, ram_budget=40 * BYTES_PER_TOKEN, is_spilling=False)
    made.turn(*A)
    made.turn(*B)
    yield made
    made.close()


def facts_of(bench: Bench, *, has_model: bool = True) -> TreeFacts:
    shape = bench.cache.tree(ids_of("".join(B)), num_events=64)
    ids = tree_view.question(shape).ids if has_model else TokenIds()
    pieces = {token_id: TokenPiece(token_id, chr(token_id)) for token_id in ids}
    now = max(edge.last_used for edge in shape.edges)
    return TreeFacts(shape, now, "builtin", pieces)


def lines_of(page: Page) -> list[str]:
    return [text_of(drawn) for drawn in page.lines]


def test_each_edge_is_a_line_in_columns(bench: Bench) -> None:
    page = tree_view.page(facts_of(bench), 80)
    lines = lines_of(page)
    assert lines[0] == "builtin · 6 edges · 2 paths · 36 tokens · 1.2 kB"
    header = lines.index(next(text for text in lines if "WHERE" in text))
    assert [text[40:].rstrip() for text in lines[header + 1 : header + 7]] == [
        "L  You·are·kind.·",
        "L  Hel",
        "   ├ lo!·",
        "   │ Hi.·",
        "L  └ p·me.·",
        "L    Yes.·",
    ]
    assert lines[header + 1].split()[:5] == ["14", "R", "RAM", "2", "1"]
    assert page.data["edges"][1]["segments"] == list(facts_of(bench).shape.edges[1].segments)
    assert [edge["parent"] for edge in page.data["edges"]] == [-1, 0, 1, 2, 1, 4]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("has_model", [True, False])
def test_no_line_is_wider_than_asked_for(bench: Bench, width: int, has_model: bool) -> None:
    facts = facts_of(bench, has_model=has_model)
    for step in range(len(facts.shape.events) + 1):
        for chosen in range(len(facts.shape.edges)):
            page = tree_view.page(facts, width, TreeState(chosen, step), 20)
            assert max(fmt.width(text) for text in lines_of(page)) <= width
            assert width < 80 or len(page.lines) <= 20


def test_without_a_model_ids_stand_for_the_text(bench: Bench) -> None:
    page = tree_view.page(facts_of(bench, has_model=False), 80)
    assert any("#89 #111" in text for text in lines_of(page))
    assert tree_view.ASK_FOR_MODEL in lines_of(page)
    assert page.data["edges"][0]["text"] is None


def test_a_long_tree_is_cut_around_what_is_chosen() -> None:
    edges = tuple(TreeEdge(-1, 0, TokenIds([n, 1]), ("ram",), 10, 1, 0, 1.0) for n in range(50))
    facts = TreeFacts(TreeShape(edges), 1.0)
    lines = lines_of(tree_view.page(facts, 80, TreeState(chosen=0), 20))
    assert len(lines) == 19  # in the middle there is one more: what is above
    shown = [text for text in lines if "#1" in text and "R  RAM" in text]
    assert f"  ... {50 - len(shown)} more below" in lines
    middle = lines_of(tree_view.page(facts, 80, TreeState(chosen=25), 20))
    assert [text for text in middle if text.startswith(">") and "#25 #1" in text]
    assert sum(int(text.split()[1]) for text in middle if "..." in text) == 50 - len(shown)
    last = lines_of(tree_view.page(facts, 80, TreeState(chosen=999), 20))
    assert [text for text in last if text.startswith(">") and "#49 #1" in text]
    assert len(tree_view.page(facts, 80).lines) > 50  # without a height, all of it


def test_keys_go_along_the_edges_and_through_what_happened(bench: Bench) -> None:
    facts = facts_of(bench)
    num_steps = len(facts.shape.events)
    state = tree_view.press(facts, NOW, "left")
    assert state == TreeState(step=num_steps)
    assert tree_view.press(facts, state, "right") == NOW
    assert tree_view.press(facts, NOW, "right") == NOW
    for _ in range(num_steps + 3):
        state = tree_view.press(facts, state, "left")
    assert state == TreeState(step=1)
    assert tree_view.press(facts, NOW, "home").chosen == 0
    assert tree_view.press(facts, TreeState(chosen=2), "down").chosen == 3
    assert tree_view.press(facts, TreeState(chosen=5), "down") == TreeState(chosen=5)
    assert tree_view.press(TreeFacts(TreeShape(()), 1.0), NOW, "left") == NOW


def test_each_change_is_a_step_with_the_tree_of_its_time(bench: Bench) -> None:
    bench.turn("Something else ", "entirely. ", "Well. ")
    facts = facts_of(bench)
    changes = [event.change for event in facts.shape.events]
    split = lines_of(tree_view.page(facts, 80, TreeState(step=changes.index("split") + 1)))
    assert [text[43:].rstrip() for text in split if text.startswith("/")] == ["Hel", "lo!·"]
    assert any("behind token 17" in text for text in split)
    gone = next(n for n, event in enumerate(facts.shape.events, 1) if event.is_gone)
    page = tree_view.page(facts, 80, TreeState(step=gone))
    assert [text[43:].rstrip(" ·") for text in lines_of(page) if text.startswith("-")] == [
        "  │ Hi."
    ]
    assert page.data["after_event"] == facts.shape.events[gone - 1].number
    first = lines_of(tree_view.page(facts, 80, TreeState(step=1)))
    assert first[0].startswith("builtin · 1 edge · 1 path · 14 tokens")
    assert any(text.startswith("+     14 R  RAM") for text in first)


def test_the_sentences_say_the_same_without_drawing(bench: Bench) -> None:
    page = tree_view.page(facts_of(bench), 80)
    told = "\n".join(page.sentences)
    assert 'Edge 2, behind edge 1, 3 tokens, "Hel".' in told
    assert "shared by 2 paths" in told
    assert not set("├└│·↵") & set(told)


def test_a_step_is_told_with_the_edges_that_it_happened_to(bench: Bench) -> None:
    facts = facts_of(bench)
    changes = [event.change for event in facts.shape.events]
    split = tree_view.page(facts, 80, TreeState(step=changes.index("split") + 1))
    assert "It happened to edges 2, 3." in split.sentences
    blind = tree_view.page(facts_of(bench, has_model=False), 80)
    assert not [sentence for sentence in blind.sentences if "#" in sentence]


def test_a_tree_that_is_empty_says_so() -> None:
    page = tree_view.page(TreeFacts(TreeShape(()), 1.0, has_engine=False), 80, NOW)
    assert "The tree is empty: nothing is remembered yet." in lines_of(page)
    assert page.data["edges"] == []
