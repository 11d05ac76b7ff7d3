"""The tokens of a turn as the lens draws them: every one of them, once, and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece, TokenPieces
from chatcache.backends.usage import TierRun
from chatcache.chat.readings import NOT_KEPT, OF_SERVER, TurnReading
from chatcache.frontend.lens import tokens_view
from chatcache.frontend.lens.fates import fate_runs
from chatcache.frontend.lens.page import LETTERS, text_of
from chatcache.frontend.lens.tokens_view import TokensFacts, TokensState, tokens_facts
from chatcache.frontend.lens.visible import shown
from chatcache.token_ids import TokenIds
from tests.lens_facts import HOSTILE, PIECE_LISTS, reading, readings

STATES = st.builds(TokensState, st.none() | st.integers(-5, 400), st.booleans(), st.booleans())
KEYS = ["left", "right", "up", "down", "page_up", "page_down", "home", "end", "ids", "mode", "cut"]
RAM_THEN_DISK = (TierRun(60, "ram"), TierRun(90, "disk"))


def spelled(turn: TurnReading, *texts: str) -> TokensFacts:
    """Facts in which the ids of a turn stand for these texts."""
    pieces = tuple(TokenPiece(index, text) for index, text in enumerate(texts))
    return tokens_facts(turn, TokenPieces(pieces))


def drawn(facts: TokensFacts, width: int = 80, height: int | None = None, **state: object) -> str:
    page = tokens_view.page(facts, width, height, TokensState(**state))  # type: ignore[arg-type]
    return "\n".join(text_of(line) for line in page.lines)


@given(readings(), PIECE_LISTS | st.just(()), STATES, st.integers(30, 120), st.integers(10, 40))
def test_no_line_is_wider_or_obeyed_and_the_chosen_token_is_seen(
    turn: TurnReading,
    pieces: tuple[TokenPiece, ...],
    state: TokensState,
    width: int,
    height: int,
) -> None:
    facts = tokens_facts(turn, TokenPieces(pieces) if pieces else None)
    page = tokens_view.page(facts, width, height, state)
    for line in page.lines:
        text = text_of(line)
        assert fmt.width(text) <= width
        assert text.isprintable()
        assert "\u200d" not in text
    shown_at = {token["position"] for token in page.data["tokens"]}
    assert tokens_view.chosen_of(facts, state) in shown_at
    assert any(part.mark == "chosen" for line in page.lines for part in line)
    assert all(sentence.isprintable() for sentence in page.sentences)


@given(readings(), PIECE_LISTS)
def test_counts_are_those_of_usage_and_every_token_is_there_once(
    turn: TurnReading, pieces: tuple[TokenPiece, ...]
) -> None:
    facts = tokens_facts(turn, TokenPieces(pieces))
    data = tokens_view.page(facts, 80, None, TokensState(is_folded=False)).data
    usage = turn.figures.usage if turn.figures else None
    assert usage is not None
    counted = Counter(token["fate"] for token in data["tokens"])
    assert counted == Counter(data["counts"])
    assert counted["ram"] + counted["vram"] == usage.cached_ram_tokens
    assert counted["disk"] == usage.cached_disk_tokens
    assert counted["computed"] == usage.computed_tokens
    assert counted["written"] == usage.completion_tokens
    assert [token["position"] for token in data["tokens"]] == list(range(len(turn.ids)))
    assert [token["id"] for token in data["tokens"]] == turn.ids.to_list()
    assert sum(token["is_control"] for token in data["tokens"]) == data["control_tokens"]


@given(readings(), STATES, st.sampled_from(KEYS), st.integers(30, 100))
def test_every_key_leads_to_a_token(
    turn: TurnReading, state: TokensState, key: str, width: int
) -> None:
    facts = TokensFacts(turn)
    after = tokens_view.press(facts, state, key, width)
    assert after is not None
    assert 0 <= tokens_view.chosen_of(facts, after) < len(turn.ids)
    assert tokens_view.press(facts, state, "no key", width) is None


@settings(max_examples=30)
@given(readings())
def test_down_leads_through_all_of_a_turn_and_up_leads_back(turn: TurnReading) -> None:
    facts, state = TokensFacts(turn), TokensState(0)
    for key, end in (("down", len(turn.ids) - 1), ("up", 0)):
        for _ in range(len(turn.ids)):
            before = tokens_view.chosen_of(facts, state)
            state = tokens_view.press(facts, state, key, 40) or state
            if tokens_view.chosen_of(facts, state) == before:
                break
        run_of = [run.start <= end < run.stop for run in fate_runs(turn)]
        chosen = tokens_view.chosen_of(facts, state)
        assert [run.start <= chosen < run.stop for run in fate_runs(turn)] == run_of


def test_white_space_split_characters_and_control_tokens_are_drawn() -> None:
    pieces = (
        TokenPiece(0, "<|im_start|>", is_control=True),
        TokenPiece(1, "Hi there"),
        TokenPiece(2, "\t\n"),
        TokenPiece(3, "<E2><82>", is_part=True),
        TokenPiece(4, "<|im_start|>"),
    )
    text = drawn(tokens_facts(reading(5), TokenPieces(pieces)))
    assert "[X:<|im_start|>]Hi·there│→↵│" in text
    assert "│<E2><82>│<|im_start|>│" in text
    assert "X 1 control" in text
    assert "‹1›" in drawn(tokens_facts(reading(5), TokenPieces(pieces)), shows_ids=True)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_token_has_no_effect_but_its_cells(text: str) -> None:
    seen = shown(text)
    assert seen.isprintable()
    assert "│" not in seen
    assert "\x1b" not in seen
    assert fmt.width(seen) >= min(1, len(text))


def test_runs_of_one_fate_are_told_at_a_glance_and_the_chosen_one_is_spread_out() -> None:
    facts = spelled(reading(100, 4, RAM_THEN_DISK, ends=(30, 60)), *("ab" for _ in range(104)))
    text = drawn(facts)
    assert "R 0–60: 60 tokens from RAM, turn 1" in text
    assert "D 60–90: 30 tokens from disk, turn 2, you" in text
    assert "C 90–100: 10 tokens computed, turn 2, you" in text
    assert "W 100–104: 4 tokens written by the model" in text
    assert text.count("│ab│") > 0
    assert "[ab]" in text
    assert "Token 90 of 104" in text
    assert "Cut at token 90: new user turn; one sentence." in text
    spread = drawn(facts, is_folded=False)
    assert spread.count("ab") == 104 + 1  # and the one that is told of


def test_an_order_that_was_not_recorded_is_not_invented() -> None:
    turn = reading(100, 0, RAM_THEN_DISK)
    assert turn.figures is not None
    older = replace(turn.figures, cache=replace(turn.figures.cache, runs=None))
    page = tokens_view.page(TokensFacts(replace(turn, figures=older)), 80)
    assert page.data["counts"] == {"reused": 90, "computed": 10}
    assert "60 from RAM and 30 from disk, order not recorded" in " ".join(page.sentences)
    assert page.data["is_order_recorded"] is False
    ram_alone = replace(older, usage=replace(older.usage, cached_ram_tokens=90))
    one_tier = replace(ram_alone, usage=replace(ram_alone.usage, cached_disk_tokens=0))
    page = tokens_view.page(TokensFacts(replace(turn, figures=one_tier)), 80)
    assert page.data["counts"] == {"ram": 90, "computed": 10}


def test_without_an_engine_tokens_are_ids_and_a_turn_without_ids_says_why() -> None:
    page = tokens_view.page(TokensFacts(reading(4)), 80)
    text = "\n".join(text_of(line) for line in page.lines)
    assert "[#0]#1│#2│#3│" in text
    assert tokens_view.ASK_FOR_MODEL in text
    gone = replace(reading(4, reason="remote"), prompt_ids=TokenIds(()), unknown=OF_SERVER)
    page = tokens_view.page(TokensFacts(gone), 40)
    assert page.sentences == (OF_SERVER,)


def test_a_part_of_a_character_says_which() -> None:
    pieces = (
        TokenPiece(0, "a"),
        TokenPiece(1, "<E6><97>", is_part=True),
        TokenPiece(2, "<A5>", is_part=True),
        TokenPiece(3, "<F0>", is_part=True),  # nothing comes of it
    )
    facts = tokens_facts(reading(4), TokenPieces(pieces))
    for chosen, words in (
        (1, "<E6><97>, a part of 日"),
        (2, "<A5>, a part of 日"),
        (3, "<F0>, id"),
    ):
        assert words in tokens_view.page(facts, 80, None, TokensState(chosen)).sentences[-1]


def test_a_turn_without_ids_still_has_its_figures() -> None:
    turn = replace(reading(100, 4, RAM_THEN_DISK), prompt_ids=TokenIds(()), unknown=NOT_KEPT)
    told = tokens_view.page(TokensFacts(turn), 80).sentences
    assert told[0] == (
        "100 tokens in the prompt: 60 from RAM, 30 from disk, 10 computed, 4 written by the model."
    )
    assert told[1].startswith("Cut at token 90: new user turn")
    assert told[2] == NOT_KEPT


def test_a_question_without_an_answer_has_ids_and_no_fates() -> None:
    page = tokens_view.page(TokensFacts(replace(reading(4), figures=None)), 80)
    assert page.data["counts"] == {"read": 4}
    assert "not recorded" in " ".join(page.sentences)


def test_each_fate_has_its_letter() -> None:
    turn = reading(100, 4, RAM_THEN_DISK)
    assert [run.letter for run in fate_runs(turn)] == ["R", "D", "C", "W"]
    assert all(LETTERS[run.mark] == run.letter for run in fate_runs(turn))
    held = reading(100, 0, (TierRun(60, "vram"), TierRun(90, "ram")))
    assert [run.letter for run in fate_runs(held)] == ["V", "R", "C"]


def test_only_what_is_seen_of_a_long_prompt_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = []
    monkeypatch.setattr(
        "chatcache.frontend.lens.token_rows.shown_piece",
        lambda piece: laid_out.append(piece) or piece.text,
    )
    turn = reading(30_000, 100, tokens=[0] * 30_100)
    page = tokens_view.page(spelled(turn, "word"), 80, 24, TokensState(15_000, is_folded=False))
    assert "Token 15,000 of 30,100" in " ".join(page.sentences)
    assert len(laid_out) < 1_000
    assert len(page.lines) <= 24
