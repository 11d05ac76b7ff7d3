"""What it would cost to go on from a place in the tree, asked of whoever can tell.

A backend that is ready is asked first; without one, the index of the disk tier is looked at, in
the namespace that the last answer ran in. Nothing known is None, never a guess.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from chatcache.backends.base import Backend, CostEstimate
from chatcache.chat.store import SessionStore
from chatcache.chat.views import SessionJournal
from chatcache.errors import ChatcacheError
from chatcache.token_ids import NO_IDS, TokenIds

_log = logging.getLogger(__name__)

OfflineCost = Callable[[str, Sequence[TokenIds]], list[CostEstimate] | None]

NO_COST = CostEstimate(ram_tokens=0, disk_tokens=0, recompute_tokens=0, estimated_ms=0.0)


class CostBook:
    """Estimates for journals. Never raises because of the cache or the backend."""

    def __init__(
        self, store: SessionStore, backend: Backend | None, offline_cost: OfflineCost | None
    ) -> None:
        self._store = store
        self._backend = backend
        self._offline_cost = offline_cost

    def tokenizer_of(self, tip: int | None) -> tuple[str, str] | None:
        """(namespace id, tokenizer id) in which a tip would go on; None while nobody knows."""
        if self._backend is not None:
            try:
                info = self._backend.wait_ready(0)
            except (TimeoutError, ChatcacheError):
                pass  # Still loading, or broken: then the last answer says what it ran on.
            else:
                return info.namespace, info.tokenizer_id
        namespace = self._store.answers.last_namespace(tip)
        return (namespace.namespace_id, namespace.tokenizer_id) if namespace else None

    def journal(self, tip: int | None) -> SessionJournal | None:
        """The token ids of the path to a tip, in the terms of `tokenizer_of`."""
        known = self.tokenizer_of(tip)
        if known is None:
            return None
        return SessionJournal(*known, self._store.journals.journal(tip, known[1]))

    def of_tip(self, tip: int | None) -> CostEstimate | None:
        return self.of_tips([tip])[0]

    def of_tips(self, tips: Sequence[int | None]) -> list[CostEstimate | None]:
        """The cost of continuing each tip."""
        by_namespace: dict[str, list[int]] = {}
        journals: list[TokenIds] = []
        costs: list[CostEstimate | None] = []
        for index, tip in enumerate(tips):
            found = self.journal(tip) if tip is not None else None
            journals.append(found.ids if found else NO_IDS)
            costs.append(NO_COST if tip is None else None)
            if found is not None and found.ids:
                by_namespace.setdefault(found.namespace_id, []).append(index)
        for namespace_id, indexes in by_namespace.items():
            estimates = self.estimate(namespace_id, [journals[index] for index in indexes])
            for index, estimate in zip(indexes, estimates, strict=True):
                costs[index] = estimate
        return costs

    def estimate(
        self, namespace_id: str, journals: Sequence[TokenIds]
    ) -> list[CostEstimate | None]:
        """One estimate per journal; None where nothing is known."""
        estimates: Sequence[CostEstimate | None] | None = None
        try:
            if self._backend is not None and self._backend.wait_ready(0).namespace == namespace_id:
                estimates = self._backend.estimate(journals)
        except (TimeoutError, ChatcacheError):
            estimates = None
        except Exception:
            # A fork must not fail because its price is unknown.
            _log.exception("the backend gave no estimate")
            estimates = None
        if estimates is None and self._offline_cost is not None:
            estimates = self._offline_cost(namespace_id, journals)
        if estimates is None or len(estimates) != len(journals):
            return [None] * len(journals)
        return list(estimates)
