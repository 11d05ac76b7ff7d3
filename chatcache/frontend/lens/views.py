"""The views of the lens in their order, each with what it reads and what its keys move.

Owns no facts and no drawing: those are in the modules of the views.
"""

from __future__ import annotations

import time
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

# Lines of the page of the tree that are no edges: what it is, a change, the chosen edge, events.
_TREE_FRAME = 12


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
    """The tree of the model that is loaded; else of what the last answer ran in, as it lies on
    disk."""

    name, title, need = "tree", "Tree", "model"

    def depends(self, state: LensState) -> None:
        return None

    def read(self, source: LensSource, state: LensState) -> tree_view.TreeFacts:
        info, shape = source.info, source.tree()
        reading = source.reading(None)
        if shape is None or info is None:
            on_disk = source.tree_on_disk(reading.namespace_id)
            return tree_view.TreeFacts(on_disk, time.time(), reading.model, has_engine=False)
        pieces = source.pieces(info.tokenizer_id, tree_view.question(shape))
        found = {piece.token_id: piece for piece in pieces.pieces} if pieces else {}
        return tree_view.TreeFacts(shape, time.time(), info.model, found)

    def page(
        self, facts: tree_view.TreeFacts, state: LensState, width: int, height: int | None
    ) -> Page:
        rows = 400 if height is None else max(3, height - _TREE_FRAME)
        return tree_view.page(facts, width, replace(self._own(state), rows=rows))

    def press(
        self, facts: tree_view.TreeFacts, state: LensState, key: LensKey, width: int
    ) -> LensState:
        before = self._own(state)
        chosen, num_edges = tree_view.chosen_edge(facts, before)
        num_steps = tree_view.step_count(facts)
        if key in ("left", "right"):
            # From the tree of now to the left is the last change; behind that one, now again.
            index = before.step - 1 if before.step else num_steps
            index = clamped(index + (1 if key == "right" else -1), num_steps + 1)
            after = replace(before, step=index + 1 if index < num_steps else 0, chosen=None)
        else:
            to = moved(key, chosen, num_edges) if num_edges else chosen
            after = before if to == chosen else replace(before, chosen=to)
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
