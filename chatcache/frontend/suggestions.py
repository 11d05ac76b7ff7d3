"""Models worth a download for somebody who has none: small, open, and reused after any token.

The sizes are those of the weights when this was written; the real one is asked before a download.
"""

from __future__ import annotations

from collections.abc import Iterable

SUGGESTED: tuple[tuple[str, int], ...] = (
    ("HuggingFaceTB/SmolLM2-360M-Instruct", 720_000_000),
    ("Qwen/Qwen3-0.6B", 1_500_000_000),
    ("Qwen/Qwen3-1.7B", 4_060_000_000),
    ("Qwen/Qwen3-4B-Instruct-2507", 8_040_000_000),
)


def suggestions(known: Iterable[str]) -> list[tuple[str, int]]:
    """Names and bytes of those that are not at hand."""
    at_hand = set(known)
    return [(name, num_bytes) for name, num_bytes in SUGGESTED if name not in at_hand]
