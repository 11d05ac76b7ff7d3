"""What the K and V of a deleted session were, and what the remaining sessions still need of them.

Owns the comparison in terms of journals: the words are gone when this runs, and whoever keeps the
tensors is told, namespace by namespace, which journals nobody can continue any more.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

from chatcache.chat.store import SessionStore
from chatcache.token_ids import TokenIds

Journals = Sequence[TokenIds]
ForgetKV = Callable[[str, Journals, Journals], None]
"""Called with a namespace, the journals that are gone, and those that are still there."""


class Doomed:
    """The journals of a session (or of single messages), read before they are deleted."""

    def __init__(
        self,
        store: SessionStore,
        session_id: str | None,
        is_gone: Callable[[int], bool] = lambda seq: True,
    ) -> None:
        self._store = store
        ends = store.answers.ends(session_id)
        self._gone = self._by_namespace(end for end in ends if is_gone(end[0]))

    @classmethod
    def of_nodes(cls, store: SessionStore, nodes: Container[int]) -> Doomed:
        """The journals that end in `nodes`, all of which are to go."""
        return cls(store, None, nodes.__contains__)

    def forget(self, forget_kv: ForgetKV) -> None:
        """Say what is gone; to be called once the session is."""
        ends = [end for end in self._store.answers.ends() if end[1] in self._gone]
        kept = self._by_namespace(ends)
        for namespace_id, journals in self._gone.items():
            forget_kv(namespace_id, journals, kept.get(namespace_id, []))

    def _by_namespace(self, ends: Iterable[tuple[int, str, str]]) -> dict[str, list[TokenIds]]:
        found: dict[str, list[TokenIds]] = {}
        for node, namespace_id, tokenizer_id in ends:
            journal = self._store.journals.journal(node, tokenizer_id)
            found.setdefault(namespace_id, []).append(journal)
        return found
