"""The models that a server offers, as `GET /models` lists them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatcache.backends.remote.characters import whole
from chatcache.formatting import clean

# How long the context is, by the names that servers have for it: vLLM, OpenRouter, LM Studio, Groq.
_CONTEXT = ("max_model_len", "context_length", "max_context_length", "context_window")
MAX_MODELS = 10_000


@dataclass(frozen=True, slots=True)
class ServerModel:
    """One model. 0 and "": the server does not say. `owner` tells some servers apart."""

    name: str
    owner: str = ""
    max_context_tokens: int = 0
    num_parameters: int = 0
    num_bytes: int = 0


def read_models(content: Any) -> list[ServerModel]:
    """The models of a list, in its order; [] where it has another shape."""
    rows = content.get("data", content.get("models")) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        return []
    found = [_model(row) for row in rows[:MAX_MODELS] if isinstance(row, dict)]
    return list({model.name: model for model in found if model.name}.values())


def _model(row: dict[str, Any]) -> ServerModel:
    meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}  # llama-server
    name = row.get("id") or row.get("name") or ""
    owner = row.get("owned_by")
    return ServerModel(
        name=clean(whole(name)) if isinstance(name, str) else "",
        owner=owner if isinstance(owner, str) else "",
        max_context_tokens=next((n for key in _CONTEXT if (n := _count(row, key))), 0)
        or _count(meta, "n_ctx"),
        num_parameters=_count(meta, "n_params"),
        num_bytes=_count(meta, "size"),
    )


def _count(row: Any, key: str) -> int:
    value = row.get(key) if isinstance(row, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
