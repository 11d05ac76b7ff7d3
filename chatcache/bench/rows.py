"""The core of the bench: prefill, resume, decode and keep, by all contenders in turn."""

from __future__ import annotations

import random
from pathlib import Path

from chatcache.bench.contenders import Chatcache, Transformers
from chatcache.bench.limits import Limits, measure_limits, resident_bytes
from chatcache.bench.llamacpp import LlamaCpp
from chatcache.bench.result import CHATCACHE, LLAMA_CPP, TRANSFORMERS, Figure, Row
from chatcache.bench.setup import BenchModel
from chatcache.formatting import size

MESSAGE_TOKENS = 16
DECODE_TOKENS = 24
SHORT_TOKENS = 128
TELLING_BYTES = 16_000_000  # fewer bytes of K and V cannot be told from a process's own noise
_WARM_UP_TOKENS = 256
_MEMORY, _DISK, _WEIGHTS = "memory bandwidth", "disk bandwidth", "one pass over weights"


def core_rows(tokens: int) -> dict[str, Row]:
    """The rows without samples, in the order of the table."""
    short = min(SHORT_TOKENS, tokens)
    rows = [
        Row("cold", f"cold, all {tokens:,} computed", "first token", "matrix rate", "cold"),
        Row("live", "next turn of an open chat", "first token", _WEIGHTS, "cold"),
        Row("ram", "resumed from RAM", "first token", "the message", "cold"),
        Row("disk", "from disk, page cache cold", "first token", _DISK, "cold"),
        Row("warm", "from disk, page cache warm", "first token", _MEMORY, "cold"),
        Row("fork", "first turn of a fork at half", "first token", _WEIGHTS),
        Row("switch", "switch back to the whole chat", "first token", _MEMORY),
        Row("decode", f"behind {tokens:,} tokens", "next token", _MEMORY, "decode"),
        Row("short", f"behind {short:,} tokens", "next token", _MEMORY, "short"),
        Row("keep", "the history, in RAM", "keeping", _MEMORY),
        Row("spill", "on disk too (behind)", "keeping", _DISK),
    ]
    return {row.name: row for row in rows}


class Bench:
    """One run of the core on one model.

    `loaded` is the model as transformers makes it, `tuned` the same as chatcache runs it.
    """

    def __init__(
        self,
        loaded: BenchModel,
        tuned: BenchModel,
        directory: Path,
        tokens: int,
        llama: LlamaCpp | None = None,
    ):
        draw = random.Random(0)
        self._loaded = loaded
        self._draw = draw
        self.history = loaded.random_ids(draw, tokens)
        self.theirs = Transformers(loaded)
        self.llama = llama
        self.ours = Chatcache(tuned, directory)
        self._returned = Chatcache(tuned, directory)
        self.rows = core_rows(tokens)
        self.bytes_written = 0
        self.restores: list[tuple[int, float]] = []
        self.memory: Figure | None = None

    def prepare(self) -> None:
        """Warm the kernels up (nobody is charged for it), then read the history and keep it."""
        beginning = self.history[:_WARM_UP_TOKENS]
        self.theirs.first_token(beginning)
        self.theirs.decode(2)
        self.ours.first_token(beginning, is_cold=True)
        self.ours.decode(2)
        before = resident_bytes()
        self.ours.first_token(self.history, is_cold=True)
        keep, spill, self.bytes_written = self.ours.commit()
        self._note_memory(resident_bytes() - before)
        self._add("keep", CHATCACHE, keep)
        self._add("spill", CHATCACHE, spill)
        if self.llama is not None:
            self.llama.first_token(beginning)
            self.llama.decode(2)
            self.llama.first_token(self.history)
            keep, spill, _ = self.llama.keep(self.history)
            self._add("keep", LLAMA_CPP, keep)
            self._add("spill", LLAMA_CPP, spill)

    def run_cold(self) -> None:
        prompt = self.history + self.message()
        self._add("cold", TRANSFORMERS, self.theirs.first_token(prompt))
        self._add("decode", TRANSFORMERS, self.theirs.decode(DECODE_TOKENS))
        if self.llama is not None:
            self._add("cold", LLAMA_CPP, self.llama.first_token(prompt))
            self._add("decode", LLAMA_CPP, self.llama.decode(DECODE_TOKENS))
        self._add("cold", CHATCACHE, self.ours.first_token(prompt, is_cold=True)[0])
        self._add("decode", CHATCACHE, self.ours.decode(DECODE_TOKENS))

    def run_short(self) -> None:
        prompt = self.history[:SHORT_TOKENS]
        self.theirs.first_token(prompt)
        self._add("short", TRANSFORMERS, self.theirs.decode(DECODE_TOKENS))
        if self.llama is not None:
            self.llama.first_token(prompt)
            self._add("short", LLAMA_CPP, self.llama.decode(DECODE_TOKENS))
        self.ours.first_token(prompt, is_cold=True)
        self._add("short", CHATCACHE, self.ours.decode(DECODE_TOKENS))

    def run_resumed(self) -> None:
        """Each row from the state that its name says; the message is new each time."""
        whole, half = self.history, self.history[: len(self.history) // 2]
        self.ours.forget_live()
        self._resume("ram", self.ours, whole)
        self._resume("live", self.ours, whole)
        self._resume("fork", self.ours, half)
        self._resume("switch", self.ours, whole)
        self._returned.reopen()
        self._returned.drop_page_cache()
        self._resume("disk", self._returned, whole)
        self._returned.reopen()
        self._resume("warm", self._returned, whole)
        self._returned.forget_live()
        if self.llama is None:
            return
        self._add("ram", LLAMA_CPP, self.llama.from_ram(self.message()))
        self._add("live", LLAMA_CPP, self.llama.live(self.message()))
        for name in ("disk", "warm"):
            seconds = self.llama.from_disk(self.message(), is_page_cache_cold=name == "disk")
            self._add(name, LLAMA_CPP, seconds)

    def label(self) -> Limits:
        """Measure the machine, and say what each row could be at best."""
        limits = measure_limits(self.ours.files(), self._loaded.dtype)
        tokens, weights = len(self.history), self._loaded.num_bytes
        message = self.rows["live"].median(CHATCACHE) or 0.0
        kv = self.bytes_written
        best = {
            "cold": self._loaded.num_flops(tokens + MESSAGE_TOKENS) / limits.matmul,
            "live": weights / limits.memory_read,
            "fork": weights / limits.memory_read,
            "ram": message,  # nothing has to move
            "warm": kv / limits.memory_copy + message,
            "switch": kv / 2 / limits.memory_copy + message,
            "disk": kv / limits.disk_read + message,
            "decode": (weights + kv) / limits.memory_read,
            "short": (weights + kv * min(SHORT_TOKENS, tokens) / tokens) / limits.memory_read,
            "keep": kv / limits.memory_copy,
        }
        for name, seconds in best.items():
            self.rows[name].limit = seconds
        return limits

    def close(self) -> None:
        self.ours.close()
        self._returned.close()

    def message(self) -> list[int]:
        """A new message of random ids."""
        return self._loaded.random_ids(self._draw, MESSAGE_TOKENS)

    def _add(self, row: str, contender: str, seconds: float) -> None:
        self.rows[row].add(contender, seconds)

    def _note_memory(self, num_bytes: int) -> None:
        """What the process grew by, over the K and V of the distinct tokens that it holds."""
        kv = self.ours.live.num_bytes
        if num_bytes > 0 and kv >= TELLING_BYTES:
            note = f"{size(num_bytes)} resident; K and V are {size(kv)}; live path included"
            self.memory = Figure(
                "memory", "memory per token held", num_bytes / kv, "ratio", 1.1, note
            )

    def _resume(self, name: str, contender: Chatcache, history: list[int]) -> None:
        seconds, reuse = contender.first_token(history + self.message())
        if reuse.num_tokens < len(history):
            raise RuntimeError(f"{name}: {reuse.num_tokens} of {len(history)} tokens were reused")
        self._add(name, CHATCACHE, seconds)
        if name == "disk":
            self.restores.append((reuse.bytes_read, reuse.seconds))
