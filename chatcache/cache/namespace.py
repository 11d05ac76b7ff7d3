"""Everything that must be equal for K and V to be valid, and what it means when it is not.

transformers has no guard against reuse of the K and V of other weights or another rotary base: it
raises nothing and answers wrongly. So all of it is named here and hashed into the namespace id.
Fields whose name starts with `soft.` are recorded for people and do not take part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

LAYOUT_VERSION = "1"
SOFT = "soft."

_REASONS: dict[str, Literal["model_changed", "adapter_changed", "settings_changed"]] = {
    "weights": "model_changed",
    "parameters": "model_changed",
    "config": "model_changed",
    "tokenizer": "model_changed",
    "adapter": "adapter_changed",
}
# The digest of the parameters in memory differs with adapter and dtype too: it is asked last.
_WORDS = {
    "weights": "the model's weights",
    "config": "the model's configuration",
    "tokenizer": "the tokenizer",
    "adapter": "the adapter",
    "dtype": "the dtype",
    "parameters": "the model's weights in memory",
    "attention": "the attention kernel",
    "layout": "the layout of the cache",
    "transformers": "the version of transformers",
}


def namespace_id(fields: Mapping[str, str]) -> str:
    """The directory name of a namespace: 32 hex digits over all hard fields."""
    hard = {name: value for name, value in fields.items() if not name.startswith(SOFT)}
    canonical = json.dumps(hard, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def explain_change(
    before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[Literal["model_changed", "adapter_changed", "settings_changed"], str] | None:
    """The reason and a sentence for the most important hard field that differs; None: none does."""
    names = [*_WORDS, *sorted({*before, *after} - set(_WORDS))]
    for name in names:
        if not name.startswith(SOFT) and before.get(name) != after.get(name):
            words = _WORDS.get(name, name)
            values = f"{_short(before.get(name))} before, {_short(after.get(name))} now"
            return _REASONS.get(name, "settings_changed"), f"{words} changed ({values})"
    return None


def _short(value: str | None) -> str:
    if not value:
        return "none"
    return value if len(value) <= 24 else f"{value[:12]}…"
