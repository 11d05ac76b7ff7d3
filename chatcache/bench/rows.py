"""The core of the bench: prefill, resume, decode and keep, by all contenders in turn; and the time
to the first token against the length of the history, cold and cached."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from pathlib import Path

from chatcache.backends.local.run.chunk_choice import CHUNK_TOKENS
from chatcache.bench.compiled import CompiledTransformers
from chatcache.bench.contenders import Chatcache, Transformers
from chatcache.bench.limits import Limits, measure_limits, resident_bytes
from chatcache.bench.llamacpp import LlamaCpp
from chatcache.bench.report import CHATCACHE, COMPILED, LLAMA_CPP, TRANSFORMERS, Figure, Point, Row
from chatcache.bench.setup import BenchModel
from chatcache.formatting import size

MESSAGE_TOKENS = 16
DECODE_TOKENS = 24
SHORT_TOKENS = 128
MEDIUM_TOKENS = 512
TELLING_BYTES = 16_000_000  # fewer bytes of K and V cannot be told from a process's own noise
_WARM_UP_TOKENS = CHUNK_TOKENS  # a whole one: what computing it takes stays with the process
_MEMORY, _DISK, _MATRICES = "memory bandwidth", "disk bandwidth", "matrix rate"
_WEIGHTS = "one pass over weights"


def core_rows(tokens: int, *, is_on_gpu: bool = False) -> dict[str, Row]:
    """The rows without samples, in the order of the table."""
    short = min(SHORT_TOKENS, tokens)
    rows = [
        Row("cold", f"cold, all {tokens:,} computed", "first token", _MATRICES, "cold"),
        Row("cold_512", f"cold, {MEDIUM_TOKENS} computed", "first token", _MATRICES, "cold_512"),
        Row("live", "next turn of an open chat", "first token", _WEIGHTS, "cold"),
        Row("ram", "resumed from RAM", "first token", "the message", "cold"),
        Row("disk", "from disk, page cache cold", "first token", _DISK, "cold"),
        Row("warm", "from disk, page cache warm", "first token", _MEMORY, "cold"),
        Row("vram", "the same, left on the GPU", "first token", _MEMORY, "cold"),
        Row("fork", "first turn of a fork (half)", "first token", _WEIGHTS),
        Row("switch", "back to the whole chat", "first token", _MEMORY),
        Row("decode", f"behind {tokens:,} tokens", "next token", _MEMORY, "decode"),
        Row("short", f"behind {short:,} tokens", "next token", _MEMORY, "short"),
        Row("keep", "the history, in RAM", "keeping", _MEMORY),
        Row("spill", "on disk too (behind)", "keeping", _DISK),
    ]
    left_out = {"cold_512"} if tokens <= MEDIUM_TOKENS else set()
    left_out |= set() if is_on_gpu else {"vram"}
    return {row.name: row for row in rows if row.name not in left_out}


class Bench:
    """One run of the core on one model.

    `plain` is the model as transformers makes it, `tuned` the same as chatcache runs it.
    """

    def __init__(
        self,
        plain: BenchModel | None,
        tuned: BenchModel,
        directory: Path,
        tokens: int,
        llama: LlamaCpp | None = None,
        *,
        has_compiled: bool = False,
    ):
        """With `has_compiled` transformers runs compiled as well."""
        draw = random.Random(0)
        self.tuned = tuned
        self.directory = directory
        self._draw = draw
        self.history = tuned.random_ids(draw, tokens)
        self.theirs = None if plain is None else Transformers(plain, self._rest)
        self.llama = llama
        self.ours = Chatcache(tuned, directory)
        num_static = tokens + MESSAGE_TOKENS + DECODE_TOKENS
        contenders = {
            TRANSFORMERS: self.theirs,
            COMPILED: CompiledTransformers(plain, num_static) if plain and has_compiled else None,
            LLAMA_CPP: llama,
            CHATCACHE: self.ours,
        }
        self._contenders = {
            name: contender for name, contender in contenders.items() if contender is not None
        }
        self._returned = Chatcache(tuned, directory, self.ours.choice)
        self.rows = core_rows(tokens, is_on_gpu=self.ours.link is not None)
        self.bytes_written = 0
        self.restores: list[tuple[int, float]] = []
        self.memory: Figure | None = None

    def prepare(self) -> None:
        """Warm the kernels up (nobody is charged for it), then read the history and keep it."""
        for contender in self._contenders.values():
            contender.cold(self.history[:_WARM_UP_TOKENS])
            contender.decode(2)
        before = resident_bytes()
        self.ours.cold(self.history)
        keep, spill, self.bytes_written = self.ours.commit()
        if self.ours.link is None:
            self._note_memory(resident_bytes() - before)
        self._add("keep", CHATCACHE, keep)
        self._add("spill", CHATCACHE, spill)
        if self.llama is not None:
            self.llama.cold(self.history)
            keep, spill, _ = self.llama.keep(self.history)
            self._add("keep", LLAMA_CPP, keep)
            self._add("spill", LLAMA_CPP, spill)

    def run_cold(self) -> None:
        prompt = self.history + self.message()
        for name, contender in self._contenders.items():
            self._add("cold", name, contender.cold(prompt))
            self._add("decode", name, contender.decode(DECODE_TOKENS))

    def run_short(self) -> None:
        for name, contender in self._contenders.items():
            contender.cold(self.history[:SHORT_TOKENS])
            self._add("short", name, contender.decode(DECODE_TOKENS))
            if "cold_512" in self.rows:
                self._add("cold_512", name, contender.cold(self.history[:MEDIUM_TOKENS]))

    def run_resumed(self) -> None:
        """Each row from the state that its name says; the message is new each time."""
        whole, half = self.history, self.history[: len(self.history) // 2]
        self.ours.forget_live()
        self._resume("ram", self.ours, whole)
        self._resume("live", self.ours, whole)
        if self.ours.link is not None:
            self.ours.first_token(self.message())  # another conversation
            self._resume("vram", self.ours, whole)
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
        link = self.ours.link
        limits = measure_limits(self.ours.files(), self.tuned.dtype, self.tuned.device, link)
        tokens, weights = len(self.history), self.tuned.step_bytes
        message = self.rows["live"].median(CHATCACHE) or 0.0
        kv = self.bytes_written
        best = {
            "cold": self.tuned.num_flops(tokens + MESSAGE_TOKENS) / limits.matmul,
            "cold_512": self.tuned.num_flops(MEDIUM_TOKENS) / limits.matmul,
            "live": weights / limits.memory_read,
            "fork": weights / limits.memory_read,
            "ram": message,  # on a CPU nothing has to move
            "warm": kv / limits.memory_copy + message,
            "vram": kv / limits.memory_copy + message,
            "switch": kv / 2 / limits.memory_copy + message,
            "disk": kv / limits.disk_read + message,
            "decode": (weights + kv) / limits.memory_read,
            "short": (weights + kv * min(SHORT_TOKENS, tokens) / tokens) / limits.memory_read,
            "keep": kv / limits.memory_copy,
        }
        if limits.to_device is not None and limits.to_host is not None:
            best["ram"] = best["warm"] = kv / limits.to_device + message
            best["disk"] = max(kv / limits.disk_read, kv / limits.to_device) + message
            best["keep"] = kv / limits.to_host
            self.rows["ram"].bound_by = "the pinned copy, a turn"
        for name in best.keys() & self.rows.keys():
            self.rows[name].limit = best[name]
        return limits

    def _rest(self) -> None:
        for contender in (self.ours, self._returned):
            contender.rest()

    def close(self) -> None:
        self.ours.close()
        self._returned.close()

    def message(self) -> list[int]:
        """A new message of random ids."""
        return self.tuned.random_ids(self._draw, MESSAGE_TOKENS)

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


COLD, DISK, RAM = "cold", "from disk", "from RAM"
LENGTHS = (256, 1024, 2048, 4096)
LONG = 30_000
# The lines of the chart, slowest first, and the row of the table that is the same measurement.
_ROWS = {
    f"{TRANSFORMERS}, {COLD}": ("cold", TRANSFORMERS),
    f"{LLAMA_CPP}, {COLD}": ("cold", LLAMA_CPP),
    f"{CHATCACHE}, {COLD}": ("cold", CHATCACHE),
    f"{LLAMA_CPP}, {DISK}": ("disk", LLAMA_CPP),
    f"{CHATCACHE}, {DISK}": ("disk", CHATCACHE),
    f"{CHATCACHE}, {RAM}": ("ram", CHATCACHE),
}


def default_lengths(tokens: int, *, is_on_gpu: bool = False) -> tuple[int, ...]:
    """Those below the history, and the history itself; on a GPU a long one, too."""
    lengths = [length for length in LENGTHS if length < tokens]
    return (*lengths, tokens, *([LONG] if is_on_gpu else []))


class Curve:
    """Measures the lengths that the table does not have. "From disk": page cache cold."""

    def __init__(self, bench: Bench, runs: int):
        self._bench = bench
        self._runs = runs
        self._draw = random.Random(2)

    def point(self, length: int) -> Point:
        """The medians behind a history of `length`; the table may have measured them already."""
        if length == len(self._bench.history):
            rows = self._bench.rows
            medians = {line: rows[row].median(name) for line, (row, name) in _ROWS.items()}
            return Point(length, {line: at for line, at in medians.items() if at is not None})
        samples: dict[str, list[float]] = defaultdict(list)
        history = self._bench.tuned.random_ids(self._draw, length)
        directory = self._bench.directory / f"curve-{length}"
        ours = Chatcache(self._bench.tuned, directory, self._bench.ours.choice)
        for _ in range(self._runs):
            self._run(history, ours, samples)
        ours.close()
        ordered = [line for line in _ROWS if line in samples]
        return Point(length, {line: statistics.median(samples[line]) for line in ordered})

    def _run(self, history: list[int], ours: Chatcache, samples: dict[str, list[float]]) -> None:
        bench, llama = self._bench, self._bench.llama
        prompt = history + bench.message()
        if bench.theirs is not None:
            samples[f"{TRANSFORMERS}, {COLD}"].append(bench.theirs.cold(prompt))
        if llama is not None:
            samples[f"{LLAMA_CPP}, {COLD}"].append(llama.cold(prompt))
            llama.keep(history)
            seconds = llama.from_disk(bench.message(), is_page_cache_cold=True)
            samples[f"{LLAMA_CPP}, {DISK}"].append(seconds)
        samples[f"{CHATCACHE}, {COLD}"].append(ours.cold(prompt))
        ours.commit([len(history)])
        ours.forget_live()
        samples[f"{CHATCACHE}, {RAM}"].append(ours.first_token(history + bench.message())[0])
        ours.reopen()
        ours.drop_page_cache()
        samples[f"{CHATCACHE}, {DISK}"].append(ours.first_token(history + bench.message())[0])
