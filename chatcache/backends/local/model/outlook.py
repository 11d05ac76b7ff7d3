"""Whether a model would have room, told without an engine: for `doctor` and `models show`.

Owns putting together what files say of the needs and what the machine says of its memory. On a GPU
the engine looks itself, and nothing is promised here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from chatcache.backends.local.model import fit, needs
from chatcache.backends.local.model.gguf.derived import open_model
from chatcache.errors import ChatcacheError
from chatcache.formatting import model_name, size
from chatcache.machine import MemoryLimit, memory_limits
from chatcache.sections import EXACT_WEIGHTS

ENGINE_BYTES = 250 << 20  # an engine without a model: torch and transformers

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """`num_bytes` are what an engine with the model would take, about."""

    num_bytes: int
    verdict: fit.Verdict
    status: Status
    detail: str
    advice: str = ""


def outlook(
    name: str,
    path: Path,
    dtype: str = "auto",
    quantize: str = EXACT_WEIGHTS,
    limits: list[MemoryLimit] | None = None,
) -> Outlook | None:
    """For the model in `path`; None where its files do not tell."""
    limits = memory_limits() if limits is None else limits
    try:
        chosen = dtype if path.is_file() else needs.likely_dtype(path, dtype)
        found = _needs(path, chosen, quantize)
        ways = [] if path.is_file() else needs.ways_out(path, chosen)
    except (ChatcacheError, OSError):
        return None
    with_engine = replace(found, held=found.held + ENGINE_BYTES)
    now = fit.fit(with_engine, limits)
    if now.verdict == "too large":
        is_never = fit.largest(with_engine, limits).verdict == "too large"
        told = fit.problem(name, now).rstrip("."), fit.advice(now, ways, limits, "")
        status: Status = "problem" if is_never else "note"
        return Outlook(with_engine.total, now.verdict, status, *told)
    if text := fit.remark(name, now):
        return Outlook(with_engine.total, now.verdict, "note", text.rstrip("."))
    free = "" if now.limit is None else f"; {size(now.limit.available)} are free"
    detail = f"{model_name(name)} needs about {size(with_engine.total)}{free}"
    return Outlook(with_engine.total, now.verdict, "ok", detail)


def _needs(path: Path, dtype: str, quantize: str) -> fit.Needs:
    if path.is_file():
        return fit.Needs(*open_model(path).packed_bytes)
    if quantize != EXACT_WEIGHTS:
        return needs.quantized_needs(path, quantize)
    return needs.directory_needs(path, dtype)
