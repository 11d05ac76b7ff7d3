"""Collects what explains the reuse of a turn: what was planned, found, stopped or lost.

What follows from it is `reasons.py`'s.
"""

from __future__ import annotations

from collections import deque

from chatcache.backends.base import ModelInfo, Reason
from chatcache.backends.local.model.cut_policy import CutPolicy
from chatcache.backends.local.run.idle import IdleWork
from chatcache.backends.local.run.live_context import Reuse
from chatcache.backends.local.run.reasons import Explanation, TurnFacts, explain
from chatcache.backends.local.run.turn_state import TurnState
from chatcache.cache.book.namespace import is_approximate
from chatcache.cache.prefix import PrefixCache
from chatcache.token_ids import TokenIds

_MAX_STOPPED = 100  # prompts that were not read to their end


class TurnExplainer:
    """Explains the turns of one model."""

    def __init__(self, info: ModelInfo, cut: CutPolicy, prefixes: PrefixCache, idle: IdleWork):
        self._info = info
        self._cut = cut
        self._prefixes = prefixes
        self._idle = idle
        self._stopped: deque[tuple[TokenIds, int]] = deque(maxlen=_MAX_STOPPED)

    def note_stopped(self, ids: TokenIds, position: int) -> None:
        """Reading a prompt was stopped at `position`."""
        self._stopped.append((ids, position))

    def explain(self, state: TurnState, reuse: Reuse) -> Explanation:
        plan, request = state.plan, state.request
        facts = TurnFacts(
            prompt_ids=plan.ids,
            reused=state.reused,
            keep=plan.keep,
            num_journal=len(request.journal),
            use_cache=request.use_cache,
            cut_problem=self._cut_problem(state, reuse),
            divergence=self._divergence(state),
            num_deviating=plan.num_deviating,
            previous=request.previous,
            num_matched=reuse.num_matched,
            declined=reuse.declined,
            restore_problem=reuse.problem,
            is_damage=reuse.is_damage,
            stopped_at=self._stopped_at(state),
            is_approximate=self.is_approximate(state),
        )
        info, prefixes = self._info, self._prefixes
        return explain(
            facts, info.namespace, info.namespace_fields, prefixes.damaged, prefixes.expired
        )

    def is_approximate(self, state: TurnState) -> bool:
        """Whether what is reused was kept with fewer bits than it was computed with."""
        return state.reused > 0 and is_approximate(self._info.namespace_fields)

    def _divergence(self, state: TurnState) -> tuple[Reason, str] | None:
        """How the template rewrote the history, unless that was read ahead of the turn."""
        diverged = state.plan.diverged
        if diverged is None:
            return None
        is_beyond = state.reused > state.plan.keep
        if is_beyond and self._idle.has_read_history(state.request, state.reused):
            return None
        return diverged.kind, diverged.detail

    def _cut_problem(self, state: TurnState, reuse: Reuse) -> str | None:
        """Why the architecture kept tokens from reuse that are known; None: it did not."""
        if len(state.plan.ids) > (self._cut.max_tokens or len(state.plan.ids)):
            return self._cut.detail
        expected = min(state.plan.keep, state.limit)
        is_known = reuse.problem is None and reuse.num_matched > reuse.num_tokens
        is_cut = self._cut.needs_states and is_known and reuse.num_tokens < expected
        return self._cut.detail if is_cut or not self._cut.is_cuttable else None

    def _stopped_at(self, state: TurnState) -> int | None:
        """Where reading a prompt that begins like this was stopped, if that is remembered; else
        where the last answer ends, if the journal goes on behind it."""
        for stopped, position in reversed(self._stopped):
            if stopped.common_prefix(state.plan.ids) > position:
                return position
        answered = state.request.num_answered
        return answered if answered != len(state.request.journal) else None
