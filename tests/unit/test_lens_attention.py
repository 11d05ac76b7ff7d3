"""What a token attended to, as the lens draws it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache import formatting as fmt
from chatcache.backends.questions import AttentionRows, TokenPiece
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens import attention_view as view
from chatcache.frontend.lens.attention_view import AttentionState
from chatcache.frontend.lens.page import text_of
from chatcache.frontend.lens.studied import StudiedTurn
from chatcache.frontend.lens.token_rows import shade
from chatcache.token_ids import TokenIds
from tests.lens_facts import PIECE_LISTS, reading, readings

STATES = st.builds(
    AttentionState,
    st.none() | st.integers(-3, 400),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 2),
    st.booleans(),
)
KEYS = "left right up down page_up page_down home end layer layer_back head head_back mode cut"
WORDS = {number: TokenPiece(number, f" w{number}") for number in range(200)}


def attended(turn: TurnReading, state: AttentionState, *, num_computed: int = 1) -> AttentionRows:
    """An answer to what is asked: each token attends to itself and to every third one."""
    asked = view.question(turn, state)
    rows = []
    for last in range(asked.first, asked.last + 1):
        row = [1.0 + at % 3 * (at + 1) for at in range(last + 1)]
        rows.append(tuple(weight / sum(row) for weight in row))
    reused = asked.last + 1 - num_computed
    return AttentionRows(asked.first, tuple(rows), 4, 3, num_computed, reused, 0.014)


def drawn(facts: StudiedTurn[AttentionRows], state: AttentionState, width: int = 80) -> str:
    return "\n".join(text_of(line) for line in view.page(facts, width, None, state).lines)


@settings(max_examples=50)
@given(readings(), PIECE_LISTS, STATES, st.integers(40, 110), st.none() | st.integers(12, 40))
def test_no_line_is_wider_or_obeyed(
    turn: TurnReading,
    pieces: tuple[TokenPiece, ...],
    state: AttentionState,
    width: int,
    height: int | None,
) -> None:
    known = {piece.token_id: piece for piece in pieces}
    facts = StudiedTurn(turn, attended(turn, state), known)
    page = view.page(facts, width, height, state)
    for line in page.lines:
        assert fmt.width(text_of(line)) <= width
        assert text_of(line).isprintable()
    assert page.data["position"] == view.chosen_of(turn, state)
    assert page.data["first_row"] + len(page.data["weights"]) - 1 == page.data["position"]
    weights = [top["weight"] for top in page.data["strongest"]]
    assert weights == sorted(page.data["weights"][-1], reverse=True)[:8]


@settings(max_examples=50)
@given(readings(), STATES, st.sampled_from(KEYS.split()), st.integers(40, 100))
def test_every_key_leads_to_something_that_can_be_asked(
    turn: TurnReading, state: AttentionState, key: str, width: int
) -> None:
    facts = StudiedTurn(turn, attended(turn, state))
    after = view.press(facts, state, key, width)
    assert after is not None
    asked = view.question(turn, after)
    assert 0 <= asked.first <= asked.last < len(asked.ids)
    assert turn.ids.startswith(asked.ids)
    assert asked.layer is None or 0 <= asked.layer < 4
    assert asked.head is None or 0 <= asked.head < 3
    assert view.press(facts, state, "no key", width) is None


def test_layers_and_heads_go_round_by_way_of_their_average() -> None:
    facts = StudiedTurn(reading(8), attended(reading(8), view.START))
    state, seen = view.START, []
    for _ in range(5):
        state = view.press(facts, state, "layer", 80) or state
        seen.append(state.layer)
    assert seen == [0, 1, 2, 3, None]
    back = view.press(facts, view.START, "head_back", 80)
    assert back is not None
    assert back.head == 2


def test_the_strongest_are_listed_with_what_it_cost() -> None:
    turn = reading(90, 5)
    page = view.page(StudiedTurn(turn, attended(turn, view.START), WORDS), 80, None)
    text = "\n".join(text_of(line) for line in page.lines)
    assert "Token 89 ·w89 of 95, averaged over 4 layers of 3 heads" in text
    assert "Cost: 1 token computed behind 89 reused, 14 ms." in text
    assert "89 ·w89" in text
    top = page.data["strongest"]
    assert [found["position"] for found in top] == [89, 86, 83, 80, 77, 74, 71, 68]
    assert f"{100 * top[0]['weight']:.1f} % to token 89" in " ".join(page.sentences)
    assert "never to later ones" in " ".join(page.sentences)


def test_each_token_has_its_shade_below_it() -> None:
    turn = reading(6)
    weights = ((0.5, 0.4, 0.1, 0.0, 0.0, 0.0),)
    facts = StudiedTurn(turn, AttentionRows(5, weights, 1, 1, 1, 5, 0.001), WORDS)
    lines = drawn(facts, view.START).splitlines()
    row = next(index for index, text in enumerate(lines) if "│·w0│" in text)
    tokens, shades = lines[row], lines[row + 1]
    for text, mark in (("·w0", "█"), ("·w1", "█"), ("·w2", "░"), ("·w3", " ")):
        at = tokens.index(text)
        assert shades[at : at + 3] == mark * 3
    assert [shade(heat) for heat in (0.0, 0.2, 0.4, 0.7, 1.0)] == [" ", "░", "▒", "▓", "█"]


def test_the_grid_is_a_lower_triangle_of_the_last_tokens() -> None:
    turn, state = reading(90, 5), AttentionState(is_grid=True)
    rows = attended(turn, state, num_computed=16)
    assert (rows.first, len(rows.rows)) == (74, 16)
    lines = drawn(StudiedTurn(turn, rows, WORDS), state).splitlines()
    grid = [text for text in lines if text.count("│") == 2]
    assert len(grid) == 16
    for index, text in enumerate(grid):
        cells = text.split("│")[1]
        assert cells.strip()
        assert cells[2 * index + 2 :].strip() == ""
    assert any("what went to tokens 0 to 73" in text for text in lines)


@pytest.mark.parametrize("is_grid", [True, False])
def test_one_token_attends_to_itself(is_grid: bool) -> None:
    turn, state = reading(1), AttentionState(is_grid=is_grid)
    text = drawn(StudiedTurn(turn, AttentionRows(0, ((1.0,),), 1, 1, 0, 1, 0.0)), state, 40)
    assert "Nothing was computed for it" in text


def test_without_a_model_it_says_what_is_missing() -> None:
    turn = reading(5)
    assert view.ASK_FOR_MODEL in drawn(StudiedTurn(turn), view.START)
    assert "No attention." in drawn(StudiedTurn(turn, reason="No attention."), view.START)
    gone = replace(turn, prompt_ids=TokenIds(()), unknown="Gone.")
    assert drawn(StudiedTurn(gone), view.START).startswith("Gone.")
