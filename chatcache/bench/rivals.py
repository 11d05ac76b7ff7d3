"""What chatcache is measured against in a run, on which weights, and why something is left out.

What is packed is measured against the same weights packed by llama.cpp, or the very same file.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch

from chatcache.bench.clock import is_gpu
from chatcache.bench.llamacpp import (
    MIXES,
    LlamaCpp,
    converted,
    has_cuda,
    why_not,
    why_not_installed,
)
from chatcache.bench.report import COMPILED, LLAMA_CPP, TRANSFORMERS, Say
from chatcache.bench.setup import BenchModel, Models
from chatcache.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rivals:
    """`plain` is what transformers runs, `llama_file` what llama.cpp runs; None: left out, where
    `left_out` may say why. `words` tell of each what it runs."""

    directory: Path
    plain: BenchModel | None
    llama_file: Path | None
    is_float32: bool
    words: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    has_compiled: bool = False  # transformers with a static cache and a compiled step, too
    is_on_gpu: bool = False

    def start_llama_cpp(self, num_tokens: int) -> LlamaCpp | None:
        """On histories of up to `num_tokens`. Raises UnavailableError."""
        if self.llama_file is None:
            return None
        return LlamaCpp(
            self.llama_file,
            self.directory,
            num_tokens,
            torch.get_num_threads(),
            is_float32=self.is_float32,
            is_on_gpu=self.is_on_gpu,
        )


def find_rivals(models: Models, directory: Path, options: argparse.Namespace, say: Say) -> Rivals:
    """Those that are asked for, or all that can run here.

    Raises UsageError if one was asked for and cannot run, UnavailableError."""
    words: dict[str, str] = {}
    left_out: list[str] = []
    chosen = options.against
    plain, llama_file = models.plain, None
    if chosen is not None and not {TRANSFORMERS, COMPILED} & set(chosen):
        plain = None
    elif plain is None:
        _leave_out(TRANSFORMERS, models.why_not_plain, chosen, left_out)
    elif models.is_packed:
        words[TRANSFORMERS] = f"the weights unpacked, in {plain.dtype_name}"
        if models.quantize is not None:
            words[TRANSFORMERS] = f"the weights before they were packed, in {plain.dtype_name}"
    if chosen is None or LLAMA_CPP in chosen:
        reason = _why_not_llama_cpp(models)
        if reason is None:
            llama_file, words[LLAMA_CPP] = _llama_file(models, directory, say)
        else:
            _leave_out(LLAMA_CPP, reason, chosen, left_out)
    is_on_gpu = is_gpu(models.tuned.device)
    has_compiled = plain is not None and (is_on_gpu if chosen is None else COMPILED in chosen)
    if has_compiled:
        words[COMPILED] = "transformers with a static cache, its step compiled (reduce-overhead)"
    return Rivals(
        directory, plain, llama_file, models.is_float32, words, left_out, has_compiled, is_on_gpu
    )


def _leave_out(name: str, reason: str, chosen: tuple[str, ...] | None, left_out: list[str]) -> None:
    """Raises UsageError if it was asked for."""
    if chosen is not None:
        raise UsageError(f"bench: {name} cannot run here: {reason}.", "Leave --against out.")
    left_out.append(f"{name} is left out: {reason}.")


def _why_not_llama_cpp(models: Models) -> str | None:
    reason = why_not_installed() if models.gguf is not None else why_not(models.tuned.config)
    if reason is None and models.tuned.device.type == "cuda" and not has_cuda():
        return "it was built without CUDA"
    return reason


def _llama_file(models: Models, directory: Path, say: Say) -> tuple[Path, str]:
    """The file, and words for it."""
    if models.gguf is not None:
        return models.gguf, "the same file"
    assert models.plain is not None  # only a GGUF file may have none
    say("llama.cpp: converting the weights")
    file = converted(models.plain.model, directory, models.quantize)
    if models.quantize is None:
        return file, f"the same weights in {models.plain.dtype_name}"
    return file, f"{MIXES[models.quantize]} of the same weights, made by its own quantiser"
