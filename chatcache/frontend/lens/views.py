"""The views of the lens in their order, each with what it reads and what its keys move.

Owns no facts and no drawing: those are in the modules of the views.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chatcache.errors import UsageError, did_you_mean
from chatcache.frontend.accounts import LedgerFacts
from chatcache.frontend.lens import (
    divergence_view,
    growth_view,
    ledger,
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


class TokensView(LensView[tokens_view.TokensFacts]):
    name, title, need = "tokens", "Tokens", "tokenizer"

    def read(self, source: LensSource, state: LensState) -> tokens_view.TokensFacts:
        reading = source.reading(state.turn)
        pieces = source.pieces(reading.tokenizer_id, tokens_view.question(reading))
        return tokens_view.tokens_facts(reading, pieces)

    def page(
        self, facts: tokens_view.TokensFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        return tokens_view.page(facts, width, height, self._own(state))

    def press(
        self, facts: tokens_view.TokensFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
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
        after = growth_view.press(facts, before, key)
        return state if after == before else state.with_own(self.name, after)

    def _step(self, facts: growth_view.GrowthFacts, state: LensState) -> int:
        step = int(state.own.get(self.name, state.step or 0))
        return clamped(step, max(1, growth_view.num_steps(facts)))


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
    GrowthView(),
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
