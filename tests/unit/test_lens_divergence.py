"""Where a prompt left what was read before, as the lens shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece, TokenPieces
from chatcache.backends.usage import Reason, TierRun
from chatcache.chat.readings import LINE_GONE, TurnReading
from chatcache.frontend.lens import divergence_view as view
from chatcache.frontend.lens.page import Page, text_of
from chatcache.token_ids import TokenIds
from tests.lens_facts import PIECE_LISTS, reading, readings

REASONS = st.sampled_from(get_args(Reason))
WORDS = TokenPieces(tuple(TokenPiece(number, f" w{number}") for number in range(200)))


def page_of(turn: TurnReading, width: int = 80) -> Page:
    return view.page(view.divergence_facts(turn, WORDS), width)


def text(page: Page) -> str:
    return "\n".join(text_of(line) for line in page.lines)


@given(
    readings(),
    PIECE_LISTS | st.just(()),
    st.lists(st.integers(0, 30), max_size=300),
    st.integers(0, 300),
    REASONS,
    st.integers(30, 110),
)
def test_both_runs_are_shown_to_the_token_whatever_they_are(
    turn: TurnReading,
    pieces: tuple[TokenPiece, ...],
    other: list[int],
    shared: int,
    reason: Reason,
    width: int,
) -> None:
    history = turn.prompt_ids[:shared] + TokenIds(other)
    assert turn.figures is not None
    cache = replace(turn.figures.cache, reason=reason)
    turn = replace(turn, figures=replace(turn.figures, cache=cache), history_ids=history)
    facts = view.divergence_facts(turn, TokenPieces(pieces) if pieces else None)
    page = view.page(facts, width)
    for line in page.lines:
        assert fmt.width(text_of(line)) <= width
        assert text_of(line).isprintable()
    data, at = page.data, page.data["position"]
    ids = {name: [each["id"] for each in data[name]] for name in ("read_before", "read_now")}
    assert [each["id"] for each in data["before"]] == turn.prompt_ids[
        max(0, at - 12) : at
    ].to_list()
    assert ids["read_now"] == turn.prompt_ids[at : at + 12].to_list()
    assert ids["read_before"] == history[at : at + 12].to_list()
    if data["is_different"]:
        assert history[:at] == turn.prompt_ids[:at]
        assert ids["read_before"][0] != ids["read_now"][0]
    cost = data["cost"]
    assert cost["computed_tokens"] == turn.figures.usage.computed_tokens
    assert 0 <= cost["computed_again_tokens"] < max(1, cost["computed_tokens"])


def test_an_edit_shows_the_first_token_that_differs_and_what_it_cost() -> None:
    old = TokenIds([*range(60), *range(100, 140)])
    turn = reading(80, 0, (TierRun(60, "ram"),), reason="turn_edited", history_ids=old)
    page = page_of(turn)
    shown = text(page)
    assert "Turn edited." in shown
    assert ">60  ·w100" in shown
    assert "│ ·w60" in shown
    assert "same before and now, tokens 48–60" in shown
    assert "·w48│·w49│" in shown
    assert "Computed: 20 tokens in 40 ms; 40 tokens read before came behind the difference" in shown
    assert "What would avoid it: Say it in a new message" in shown
    assert "number 60" in " ".join(page.sentences)


def test_what_the_cache_has_lost_is_no_difference() -> None:
    turn = reading(100, 0, (TierRun(60, "ram"),), reason="evicted", history_ids=TokenIds(range(90)))
    page = page_of(turn)
    assert page.data["is_different"] is False
    assert "30 of them were read before, about 0.30 s" in text(page)  # at 100 tokens per second
    assert " 60 =·w60" in text(page)
    assert ">" not in text(page)
    assert "cache.disk_budget" in text(page)


def test_on_a_full_hit_nothing_diverged() -> None:
    turn = reading(100, 0, (TierRun(90, "ram"),), history_ids=TokenIds(range(90)))
    shown = text(page_of(turn))
    assert "Nothing diverged: the prompt begins with what was read before." in shown
    assert "avoid" not in shown
    assert "(end)" in shown


def test_what_was_rewritten_and_computed_ahead_is_no_loss() -> None:
    turn = reading(100, 0, (TierRun(90, "ram"),), history_ids=TokenIds([*range(70), 150]))
    shown = page_of(turn).sentences[0]
    assert "differs from what was read before at token 70, and that was computed ahead" in shown


def test_a_line_that_is_gone_is_said() -> None:
    turn = reading(100, reason="system_prompt_changed", no_history=LINE_GONE)
    shown = text(page_of(turn))
    assert LINE_GONE in shown
    assert "(not known)" in shown


@pytest.mark.parametrize("reason", get_args(Reason))
def test_each_reason_says_what_would_avoid_it(reason: Reason) -> None:
    page = page_of(reading(10, reason=reason))
    assert page.data["avoid"]
    assert f"What would avoid it: {page.data['avoid']}" in page.sentences


def test_a_turn_that_nobody_knows_the_ids_of_says_why() -> None:
    remote = replace(reading(4, reason="remote"), prompt_ids=TokenIds(()), unknown="Gone.")
    assert page_of(remote).sentences == ("Gone.",)
    gone = replace(reading(4, reason="evicted"), prompt_ids=TokenIds(()), unknown="Gone.")
    told = page_of(gone).sentences
    assert told[0] == "Evicted."
    assert "Gone." in told
    assert "not recorded" in page_of(replace(reading(4), figures=None)).sentences[0]
