"""What loading a model takes, in processes of its own: seconds until it is there and until it has
written a token, and the memory that its weights take.

The page cache is warm: all others have read the weights before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chatcache.bench.clock import is_gpu
from chatcache.bench.llamacpp import LlamaCpp
from chatcache.bench.memory import Loading
from chatcache.bench.processes import child_environment
from chatcache.bench.report import CHATCACHE, LLAMA_CPP, Figure, Row
from chatcache.bench.rows import MEDIUM_TOKENS, MESSAGE_TOKENS, TELLING_BYTES
from chatcache.bench.setup import Models
from chatcache.errors import UnavailableError
from chatcache.formatting import size

_MAX_RUNS = 3
_CHILD = "chatcache.bench.loading_child"
# What packed weights should not exceed, over the bytes of their file.
_IN_MEMORY, _AT_MOST = 1.15, 1.25


class LoadingBench:
    """Rows and figures of loading; `llama_file` is what llama.cpp runs, None without it."""

    def __init__(self, models: Models, directory: Path, num_threads: int, llama_file: Path | None):
        self._models = models
        self._directory = directory
        self._num_threads = num_threads
        self._llama_file = llama_file
        self._device = models.tuned.device
        self._ids = [number % models.tuned.vocab_size for number in range(MEDIUM_TOKENS)]
        self._loadings: dict[str, list[Loading]] = {}
        self.rows = {
            name: Row(name, title, "loading", bound_by)
            for name, title, bound_by in (
                ("loaded", "weights are there", "mapped or copied"),
                ("loaded_token", "and a first token", "one pass over weights"),
                ("first", "of that, the first token", "one pass over weights"),
            )
        }

    def run(self, runs: int) -> None:
        """Raises UnavailableError where the model cannot be loaded."""
        for _ in range(min(runs, _MAX_RUNS)):
            self._note(CHATCACHE, self._ours())
            if self._llama_file is not None:
                self._note(LLAMA_CPP, self._llama(self._llama_file))

    def figures(self) -> list[Figure]:
        """Of memory; none where the system does not tell, or the model is too small to tell. Of a
        GPU, what was captured before a first token was there."""
        if is_gpu(self._device):
            found = self._loadings[CHATCACHE]
            most = max(loading.num_captured for loading in found)
            return [Figure("first_captures", "captured before a token", most, "steps", 0)]
        ours, kept = self._median(CHATCACHE, "weights"), self._models.file_bytes
        if ours is None or kept < TELLING_BYTES:
            return []
        is_packed = self._models.is_packed
        theirs, reading = self._median(LLAMA_CPP, "weights"), self._median(CHATCACHE, "reading")
        beside = "" if theirs is None else f"; llama.cpp {size(theirs)}"
        return [
            Figure("weights_memory", "weights in memory", ours, "bytes",
                   _IN_MEMORY * kept if is_packed else None, f"{size(kept)} on disk{beside}"),
            Figure("loading_memory", "at most while loaded",
                   self._median(CHATCACHE, "most") or 0, "bytes",
                   _AT_MOST * kept if is_packed else None),
            Figure("reading_memory", f"after {MEDIUM_TOKENS} tokens", reading or 0, "bytes",
                   note="with K and V, and what computing needs"),
        ]  # fmt: skip

    def _note(self, contender: str, loading: Loading) -> None:
        self._loadings.setdefault(contender, []).append(loading)
        self.rows["loaded"].add(contender, loading.load)
        there = loading.load + loading.ready + loading.first_token
        self.rows["loaded_token"].add(contender, there)
        self.rows["first"].add(contender, loading.first_token)

    def _median(self, contender: str, name: str) -> int | None:
        values = [getattr(loading, name) for loading in self._loadings.get(contender, [])]
        known = [value for value in values if value is not None]
        return round(statistics.median(known)) if known else None

    def _ours(self) -> Loading:
        options = {
            "model": self._models.source,
            "cache_dir": str(self._models.cache_dir),
            "dtype": self._models.tuned.dtype_name,
            "device": self._device.type,
            "quantize": self._models.quantize,
            "threads": self._num_threads,
            "few": self._few,
            "many": self._ids,
        }
        done = subprocess.run(
            [sys.executable, "-P", "-m", _CHILD],
            input=json.dumps(options),
            capture_output=True,
            text=True,
            env=child_environment(),
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UnavailableError(f"Loading failed in the bench: {last}", "Run doctor.")
        return Loading.of(json.loads(done.stdout))

    def _llama(self, weights: Path) -> Loading:
        llama = LlamaCpp(
            weights,
            self._directory,
            len(self._ids),
            self._num_threads,
            is_float32=self._models.is_float32,
        )
        try:
            return llama.loading(self._few, self._ids)
        finally:
            llama.close()

    @property
    def _few(self) -> Sequence[int]:
        return self._ids[:MESSAGE_TOKENS]
