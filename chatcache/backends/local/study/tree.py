"""The radix tree of the model's namespace as the cache has it, and what happened to it last."""

from __future__ import annotations

from chatcache.backends.questions import AskTree, TreeShape
from chatcache.cache.prefix import PrefixCache
from chatcache.token_ids import TokenIds


def tree_shape(question: AskTree, prefixes: PrefixCache, live: TokenIds) -> TreeShape:
    """`live` is the path whose K and V are live. Changes nothing, not even recency."""
    return prefixes.tree(live, question.num_events)
