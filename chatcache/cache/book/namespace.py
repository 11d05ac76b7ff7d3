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

from chatcache.token_ids import TokenIds

LAYOUT_VERSION = "1"
PRECISION = "precision"
WEIGHTS_FORM = "weights_form"
EXACT = "exact"
SOFT = "soft."
QUANTIZATION = SOFT + "quantization"  # the word for how the weights are packed

_REASONS: dict[str, Literal["model_changed", "adapter_changed", "settings_changed"]] = {
    "weights": "model_changed",
    WEIGHTS_FORM: "model_changed",
    "parameters": "model_changed",
    "config": "model_changed",
    "tokenizer": "model_changed",
    "adapter": "adapter_changed",
}
# The digest of the parameters in memory differs with adapter and dtype too: it is asked last.
_WORDS = {
    "weights": "the model's weights",
    WEIGHTS_FORM: "how the weights are packed",
    "config": "the model's configuration",
    "tokenizer": "the tokenizer",
    "adapter": "the adapter",
    "dtype": "the dtype",
    "attention": "the attention kernel",
    "layout": "the layout of the cache",
    "transformers": "the version of transformers",
    PRECISION: "how exactly K and V are kept",
    "parameters": "the model's weights in memory",
}
# What a field means that is not there: it was introduced after the first namespaces.
_ABSENT = {PRECISION: EXACT, WEIGHTS_FORM: EXACT}

# What says more to people than a digest, where it differs as well.
_LABELS = {"weights": SOFT + "name", WEIGHTS_FORM: QUANTIZATION}


def namespace_id(fields: Mapping[str, str]) -> str:
    """The directory name of a namespace: 32 hex digits over all hard fields."""
    hard = {name: value for name, value in fields.items() if not name.startswith(SOFT)}
    canonical = json.dumps(hard, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def chain_digest(namespace: str, start: int, ids: TokenIds) -> str:
    """The id of a segment: a digest of its namespace, first position and every id up to its end.

    Two segments have the same id exactly when the same model read the same tokens at the same
    positions after the same history, so a segment that is computed again replaces itself.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{namespace}\0{start}\0".encode())
    digest.update(ids.packed)
    return digest.hexdigest()


def is_approximate(fields: Mapping[str, str]) -> bool:
    """Whether K and V of this namespace are kept with fewer bits than they were computed with."""
    return fields.get(PRECISION, EXACT) != EXACT


def explain_change(
    before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[Literal["model_changed", "adapter_changed", "settings_changed"], str] | None:
    """The reason and a sentence for the most important hard field that differs; None: none does."""
    names = [*_WORDS, *sorted({*before, *after} - set(_WORDS))]
    for name in names:
        if name.startswith(SOFT):
            continue
        old, new = (fields.get(name, _ABSENT.get(name)) for fields in (before, after))
        if old != new:
            words = _WORDS.get(name, name)
            labels = [
                fields.get(_LABELS.get(name, ""), _ABSENT.get(name)) for fields in (before, after)
            ]
            if labels[0] != labels[1] and all(labels):
                old, new = labels
            values = f"{_short(old)} before, {_short(new)} now"
            return _REASONS.get(name, "settings_changed"), f"{words} changed ({values})"
    return None


def _short(value: str | None) -> str:
    if not value:
        return "none"
    value = value.removesuffix("/").rpartition("/")[2] if value.startswith("/") else value
    return value if len(value) <= 24 else f"{value[:12]}…"
