"""The views of the lens in their order, each with what it reads and what its keys move.

Owns no facts and no drawing: those are in the modules of the views.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from chatcache.backends.questions import AttentionRows, NextTokens
from chatcache.errors import UsageError, did_you_mean
from chatcache.frontend.accounts import LedgerFacts
from chatcache.frontend.lens import (
    attention_view,
    compare_view,
    divergence_view,
    growth_view,
    ledger,
    next_view,
    tokens_view,
    tree_view,
    turns,
)
from chatcache.frontend.lens.page import Page
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.state import LensKey, LensState, clamped
from chatcache.frontend.lens.view import LensView, moved, with_turn


class TurnsView(LensView[turns.TurnsFacts]):
    name, title, follows = "turns", "Turns", False

    def depends(self, state: LensState) -> None:
        return None

    def read(self, source: LensSource, state: LensState) -> turns.TurnsFacts:
        info = source.info
        return turns.TurnsFacts(
            tuple(turns.lens(source.points())),
            source.figures(),
            info.max_context_tokens if info else None,
        )

    def page(
        self, facts: turns.TurnsFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        return turns.page(facts, width, state.turn)

    def press(
        self, facts: turns.TurnsFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
        chosen = facts.chosen(state.turn)
        if chosen is None or key in ("left", "right"):
            return state
        index = moved(key, facts.rows.index(chosen), len(facts.rows))
        return with_turn(state, facts.rows[index].turn)


class TokensView(LensView[tokens_view.TokensFacts | compare_view.CompareFacts]):
    """The tokens of a turn; with a second tokenizer, what both make of its question."""

    name, title, need = "tokens", "Tokens", "tokenizer"

    def depends(self, state: LensState) -> Hashable:
        return state.turn, state.tokenizer

    def read(
        self, source: LensSource, state: LensState
    ) -> tokens_view.TokensFacts | compare_view.CompareFacts:
        reading = source.reading(state.turn)
        if state.tokenizer:
            return source.comparison(reading.question, state.tokenizer)
        pieces = source.pieces(reading.tokenizer_id, tokens_view.question(reading))
        return tokens_view.tokens_facts(reading, pieces)

    def page(
        self,
        facts: tokens_view.TokensFacts | compare_view.CompareFacts,
        state: LensState,
        width: int,
        height: int | None,
    ) -> Page:
        if isinstance(facts, compare_view.CompareFacts):
            return compare_view.page(facts, width, height)
        return tokens_view.page(facts, width, height, self._own(state))

    def press(
        self,
        facts: tokens_view.TokensFacts | compare_view.CompareFacts,
        state: LensState,
        key: LensKey,
        width: int,
    ) -> LensState:
        if isinstance(facts, compare_view.CompareFacts):
            return replace(state, tokenizer="") if key == "mode" else state
        pressed = tokens_view.press(facts, self._own(state), key, width)
        if pressed is None:
            return state
        moved = replace(state, token=pressed.chosen, has_ids=pressed.shows_ids)
        return moved.with_own(self.name, pressed.is_folded)

    def _own(self, state: LensState) -> tokens_view.TokensState:
        is_folded = bool(state.own.get(self.name, True))
        return tokens_view.TokensState(state.token, state.has_ids, is_folded)


class DivergenceView(LensView[divergence_view.DivergenceFacts]):
    name, title, need = "divergence", "Divergence", "tokenizer"

    def read(self, source: LensSource, state: LensState) -> divergence_view.DivergenceFacts:
        reading = source.reading(state.turn)
        pieces = source.pieces(reading.tokenizer_id, divergence_view.question(reading))
        return divergence_view.divergence_facts(reading, pieces)

    def page(
        self,
        facts: divergence_view.DivergenceFacts,
        state: LensState,
        width: int,
        height: int | None,
    ) -> Page:
        return divergence_view.page(facts, width, height)


class AttentionView(LensView[attention_view.AttentionFacts]):
    name, title, need = "attention", "Attention", "model"

    def depends(self, state: LensState) -> Hashable:
        return state.turn, self._own(state)

    def read(self, source: LensSource, state: LensState) -> attention_view.AttentionFacts:
        reading, own = source.reading(state.turn), self._own(state)
        return source.studied(reading, attention_view.question(reading, own), AttentionRows)

    def page(
        self, facts: attention_view.AttentionFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        return attention_view.page(facts, width, height, self._own(state))

    def press(
        self, facts: attention_view.AttentionFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
        pressed = attention_view.press(facts, self._own(state), key, width)
        if pressed is None:
            return state
        moved = replace(state, token=pressed.chosen, layer=pressed.layer, head=pressed.head)
        return moved.with_own(self.name, pressed.is_grid)

    def _own(self, state: LensState) -> attention_view.AttentionState:
        is_grid = bool(state.own.get(self.name, False))
        return attention_view.AttentionState(state.token, state.layer, state.head, is_grid)


class GrowthView(LensView[growth_view.GrowthFacts]):
    name, title, need = "growth", "Growth", "model"

    def read(self, source: LensSource, state: LensState) -> growth_view.GrowthFacts:
        reading = source.reading(state.turn)
        return growth_view.GrowthFacts(reading, source.shape(reading))

    def page(
        self, facts: growth_view.GrowthFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        return growth_view.page(facts, width, height, self._step(facts, state))

    def press(
        self, facts: growth_view.GrowthFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
        before = self._step(facts, state)
        after = moved(key, before, max(1, growth_view.num_steps(facts)))
        return state if after == before else state.with_own(self.name, after)

    def _step(self, facts: growth_view.GrowthFacts, state: LensState) -> int:
        step = int(state.own.get(self.name, state.step or 0))
        return clamped(step, max(1, growth_view.num_steps(facts)))


class NextView(LensView[next_view.NextFacts]):
    name, title, need = "next", "Next", "model"

    def depends(self, state: LensState) -> Hashable:
        own = self._own(state)
        return state.turn, own.num_behind, own.sampling

    def read(self, source: LensSource, state: LensState) -> next_view.NextFacts:
        reading, own = source.reading(state.turn), self._own(state)
        return source.studied(reading, next_view.question(reading, own), NextTokens)

    def page(
        self, facts: next_view.NextFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        return next_view.page(facts, width, height, self._own(state))

    def press(
        self, facts: next_view.NextFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
        pressed = next_view.press(facts, self._own(state), key)
        if pressed is None:
            return state
        kept = (pressed.num_behind, pressed.setting)
        return replace(state, sampling=pressed.sampling).with_own(self.name, kept)

    def _own(self, state: LensState) -> next_view.NextState:
        num_behind, setting = state.own.get(self.name, (state.step or 0, 0))
        return next_view.NextState(num_behind, setting, state.sampling)


class TreeView(LensView[tree_view.TreeFacts]):
    name, title, need = "tree", "Tree", "tokenizer"

    def depends(self, state: LensState) -> None:
        return None

    def read(self, source: LensSource, state: LensState) -> tree_view.TreeFacts:
        return tree_view.read(source)

    def page(
        self, facts: tree_view.TreeFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        return tree_view.page(facts, width, self._own(state), height)

    def press(
        self, facts: tree_view.TreeFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
        before = self._own(state)
        after = tree_view.press(facts, before, key)
        return state if after == before else state.with_own(self.name, after)

    def _own(self, state: LensState) -> tree_view.TreeState:
        kept = state.own.get(self.name)
        if isinstance(kept, tree_view.TreeState):
            return kept
        return tree_view.TreeState(step=state.step or 0)


class LedgerView(LensView[LedgerFacts]):
    name, title = "ledger", "Ledger"

    def depends(self, state: LensState) -> None:
        return None

    def read(self, source: LensSource, state: LensState) -> LedgerFacts:
        return source.accounts()

    def page(self, facts: LedgerFacts, state: LensState, width: int, height: int | None) -> Page:
        return ledger.page(facts, width)


VIEWS: tuple[LensView[Any], ...] = (
    TurnsView(),
    TokensView(),
    DivergenceView(),
    AttentionView(),
    GrowthView(),
    NextView(),
    TreeView(),
    LedgerView(),
)
VIEW_NAMES = tuple(view.name for view in VIEWS)


def view_named(name: str) -> LensView[Any]:
    """Raises UsageError naming the views there are."""
    for view in VIEWS:
        if view.name == name.casefold():
            return view
    hint = did_you_mean(name, VIEW_NAMES) or f"There are {', '.join(VIEW_NAMES)}."
    raise UsageError(f"The lens has no view {name!r}.", hint)
