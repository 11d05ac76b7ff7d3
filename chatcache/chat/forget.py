"""What the K and V of a deleted session were, and what the remaining sessions still need of them.

Owns the comparison in terms of journals: the words are gone when this runs, and whoever keeps the
tensors is told, namespace by namespace, which journals nobody can continue any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from chatcache.chat.sessions import SessionStore

Journals = Sequence[tuple[int, ...]]
ForgetKV = Callable[[str, Journals, Journals], None]
"""Called with a namespace, the journals that are gone, and those that are still there."""


class Doomed:
    """The journals of a session, read before it is deleted."""

    def __init__(self, store: SessionStore, session_id: str) -> None:
        self._store = store
        self._gone = self._by_namespace(store.answers.ends(session_id))

    def forget(self, forget_kv: ForgetKV) -> None:
        """Say what is gone; to be called once the session is."""
        ends = [end for end in self._store.answers.ends() if end[1] in self._gone]
        kept = self._by_namespace(ends)
        for namespace_id, journals in self._gone.items():
            forget_kv(namespace_id, journals, kept.get(namespace_id, []))

    def _by_namespace(
        self, ends: Iterable[tuple[int, str, str]]
    ) -> dict[str, list[tuple[int, ...]]]:
        found: dict[str, list[tuple[int, ...]]] = {}
        for node, namespace_id, tokenizer_id in ends:
            journal = self._store.journals.journal(node, tokenizer_id)
            found.setdefault(namespace_id, []).append(journal)
        return found
