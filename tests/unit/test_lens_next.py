"""The scores of the next token, before and after the settings, as the lens draws them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache import formatting as fmt
from chatcache.backends.base import SamplingParams
from chatcache.backends.questions import NextToken, NextTokens, TokenPiece
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens import next_view as view
from chatcache.frontend.lens.next_view import SETTINGS, STEPS, NextState
from chatcache.frontend.lens.page import text_of
from chatcache.frontend.lens.studied import StudiedTurn
from chatcache.token_ids import TokenIds
from tests.lens_facts import PIECE_LISTS, reading, readings

SHARES = st.lists(st.floats(0, 1), min_size=10, max_size=10)
STATES = st.builds(NextState, st.integers(-2, 60), st.integers(0, 3))
KEYS = ["left", "right", "up", "down", "home", "end", "less", "more", "cut"]


def scored(pieces: tuple[TokenPiece, ...], shares: list[float]) -> NextTokens:
    candidates = tuple(
        NextToken(piece, 0.5, share, share if share > 0.5 else 0.0)
        for piece, share in zip(pieces, shares, strict=False)
    )
    return NextTokens(candidates, 4, 1.25, 1, 89, 0.02, 0.7, 40, 0.95, 0.0)


WORDS = tuple(TokenPiece(number, f" w{number}") for number in range(200))


@settings(max_examples=50)
@given(readings(), PIECE_LISTS, SHARES, STATES, st.integers(40, 110))
def test_no_line_is_wider_or_obeyed(
    turn: TurnReading,
    pieces: tuple[TokenPiece, ...],
    shares: list[float],
    state: NextState,
    width: int,
) -> None:
    known = {piece.token_id: piece for piece in pieces}
    page = view.page(StudiedTurn(turn, scored(pieces, shares), known), width, None, state)
    for line in page.lines:
        assert fmt.width(text_of(line)) <= width
        assert text_of(line).isprintable()
    asked = view.question(turn, state)
    assert page.data["position"] == len(asked.ids)
    assert turn.ids.startswith(asked.ids)
    assert page.data["changed_rows"] == 0


@settings(max_examples=50)
@given(readings(), STATES, st.lists(st.sampled_from(KEYS), max_size=40))
def test_keys_change_settings_within_their_ends_and_no_ids(
    turn: TurnReading, state: NextState, keys: list[str]
) -> None:
    facts = StudiedTurn(turn)
    for key in keys:
        after = view.press(facts, state, key)
        assert after is not None
        if key in ("less", "more", "up", "down"):
            assert view.question(turn, after).ids == view.question(turn, state).ids
        state = after
    for name in SETTINGS:
        value = getattr(state.sampling, name)
        assert value is None or STEPS[name][0] <= value <= STEPS[name][-1]
    assert view.press(facts, state, "no key") is None


def test_the_table_has_both_distributions_and_what_was_said() -> None:
    turn = reading(90, 5)
    shares = [0.55, 0.25, 0.1, *[0.01] * 7]
    facts = StudiedTurn(
        turn, scored(WORDS[90:], shares), {piece.token_id: piece for piece in WORDS}
    )
    page = view.page(facts, 80)
    text = "\n".join(text_of(line) for line in page.lines)
    assert "Scores behind token 89, the prompt's last; the model wrote ·w90" in text
    assert ">temperature 0.7   top_k 40   top_p 0.95   min_p off" in text
    assert "> 1 ·w90" in text  # what was really written
    assert " 55.0 %" in text
    assert "cut off" in text
    assert "not one row of the cache" in text
    assert "Cost: 1 token computed behind 89 reused, 20 ms." in text
    assert page.data["candidates"][1]["probability"] == 0.25
    later = view.page(facts, 80, None, NextState(3)).sentences[0]
    assert "behind token 92, 3 tokens into the answer; the model wrote ·w93" in later
    assert "wrote" not in view.page(facts, 80, None, NextState(5)).sentences[0]


def test_settings_go_on_from_what_counted_when_the_model_was_asked() -> None:
    facts = StudiedTurn(reading(9), scored(WORDS, [0.1] * 10))
    warmer = view.press(facts, NextState(), "more")
    assert warmer is not None
    assert warmer.sampling == SamplingParams(temperature=0.8)
    fewer = view.press(facts, NextState(setting=1), "less")
    assert fewer is not None
    assert fewer.sampling == SamplingParams(top_k=20)
    asked = view.question(reading(9), fewer)
    assert (asked.top_k, asked.temperature) == (20, None)
    greedy = view.page(facts, 80, None, NextState(sampling=SamplingParams(temperature=0.0)))
    assert "temperature 0 (the most probable)" in greedy.sentences[1]


def test_without_a_model_it_says_what_is_missing() -> None:
    assert view.ASK_FOR_MODEL in view.page(StudiedTurn(reading(9)), 80).sentences[0]
    gone = replace(reading(9), prompt_ids=TokenIds(()), unknown="Gone.")
    assert view.page(StudiedTurn(gone), 80).sentences[0] == "Gone."
    assert (
        view.page(StudiedTurn(reading(9), reason="It says no."), 80).sentences[0] == "It says no."
    )
