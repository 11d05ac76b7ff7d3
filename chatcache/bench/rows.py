"""The rows: what is measured, in which order, and what bounds it."""

from __future__ import annotations

import platform
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache.bench.contenders import Chatcache, Transformers
from chatcache.bench.limits import Limits, measure_limits
from chatcache.bench.setup import BenchModel

MESSAGE_TOKENS = 16
DECODE_TOKENS = 24
SHORT_TOKENS = 128


@dataclass(slots=True)
class Row:
    """One line of the table: seconds per contender, and the seconds that physics asks for.

    `against` names the row whose transformers figure a resumed turn is compared with.
    """

    name: str
    title: str
    bound_by: str = ""
    against: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    limit: float | None = None

    def add(self, contender: str, seconds: float) -> None:
        self.samples.setdefault(contender, []).append(seconds)

    def median(self, contender: str) -> float | None:
        values = self.samples.get(contender)
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class BenchResult:
    conditions: dict[str, Any]
    limits: Limits
    rows: dict[str, Row]
    bytes_written: int


def _rows(tokens: int) -> dict[str, Row]:
    rows = [
        Row("cold", f"cold prefill, {tokens:,} tokens", "compute", against="cold"),
        Row("live", "next turn, history live", "one pass over the weights", against="cold"),
        Row("ram", "resume from RAM", "memory bandwidth", against="cold"),
        Row("disk", "resume from disk, page cache cold", "disk bandwidth", against="cold"),
        Row("warm", "resume from disk, page cache warm", "memory bandwidth", against="cold"),
        Row("fork", "first turn of a fork at half", "one pass over the weights"),
        Row("switch", "switch back to the whole chat", "memory bandwidth"),
        Row("decode", f"decode one token at {tokens:,}", "memory bandwidth", against="decode"),
        Row("short", f"decode one token at {SHORT_TOKENS}", "memory bandwidth", against="short"),
        Row("keep", "keep a history in RAM", "memory bandwidth"),
        Row("spill", "spill it to disk (behind)", "disk bandwidth"),
    ]
    return {row.name: row for row in rows}


class Bench:
    """One run of everything on one model."""

    def __init__(self, loaded: BenchModel, tuned: BenchModel, directory: Path, tokens: int):
        draw = random.Random(0)
        self._loaded = loaded
        self._draw = draw
        self._history = [draw.randrange(loaded.vocab_size) for _ in range(tokens)]
        self._theirs = Transformers(loaded)
        self._ours = Chatcache(tuned, directory)
        self._returned = Chatcache(tuned, directory)
        self.rows = _rows(tokens)
        self.bytes_written = 0

    def prepare(self) -> None:
        """Warm the kernels up (nobody is charged for it), then read the history and keep it."""
        beginning = self._history[:256]
        self._theirs.first_token(beginning)
        self._theirs.decode(2)
        self._ours.first_token(beginning, is_cold=True)
        self._ours.decode(2)
        self._ours.first_token(self._history, is_cold=True)
        keep, spill, self.bytes_written = self._ours.commit()
        self.rows["keep"].add("chatcache", keep)
        self.rows["spill"].add("chatcache", spill)

    def run_cold(self) -> None:
        prompt = self._history + self._message()
        self.rows["cold"].add("transformers", self._theirs.first_token(prompt))
        self.rows["decode"].add("transformers", self._theirs.decode(DECODE_TOKENS))
        self.rows["cold"].add("chatcache", self._ours.first_token(prompt, is_cold=True)[0])
        self.rows["decode"].add("chatcache", self._ours.decode(DECODE_TOKENS))

    def run_short(self) -> None:
        prompt = self._history[:SHORT_TOKENS]
        self._theirs.first_token(prompt)
        self.rows["short"].add("transformers", self._theirs.decode(DECODE_TOKENS))
        self._ours.first_token(prompt, is_cold=True)
        self.rows["short"].add("chatcache", self._ours.decode(DECODE_TOKENS))

    def run_resumed(self) -> None:
        """Each row from the state that its name says; the message is new each time."""
        whole, half = self._history, self._history[: len(self._history) // 2]
        self._ours.forget_live()
        self._first_token("ram", self._ours, whole)
        self._first_token("live", self._ours, whole)
        self._first_token("fork", self._ours, half)
        self._first_token("switch", self._ours, whole)
        self._returned.reopen()
        self._returned.drop_page_cache()
        self._first_token("disk", self._returned, whole)
        self._returned.reopen()
        self._first_token("warm", self._returned, whole)

    def label(self) -> Limits:
        """Measure the machine, and say what each row could be at best."""
        limits = measure_limits(self._ours.files(), self._loaded.dtype)
        tokens, weights = len(self._history), self._loaded.num_bytes
        message = self.rows["live"].median("chatcache") or 0.0
        kv = self.bytes_written
        best = {
            "cold": self._loaded.num_flops(tokens + MESSAGE_TOKENS) / limits.matmul,
            "live": weights / limits.memory_read,
            "fork": weights / limits.memory_read,
            "ram": kv / limits.memory_copy + message,
            "warm": kv / limits.memory_copy + message,
            "switch": kv / 2 / limits.memory_copy + message,
            "disk": kv / limits.disk_read + message,
            "decode": (weights + kv) / limits.memory_read,
            "short": (weights + kv * SHORT_TOKENS / tokens) / limits.memory_read,
            "keep": kv / limits.memory_copy,
        }
        for name, seconds in best.items():
            self.rows[name].limit = seconds
        return limits

    def close(self) -> None:
        self._ours.close()
        self._returned.close()

    def _message(self) -> list[int]:
        return [self._draw.randrange(self._loaded.vocab_size) for _ in range(MESSAGE_TOKENS)]

    def _first_token(self, name: str, contender: Chatcache, history: list[int]) -> None:
        seconds, reuse = contender.first_token(history + self._message())
        if reuse.num_tokens < len(history):
            raise RuntimeError(f"{name}: {reuse.num_tokens} of {len(history)} tokens were reused")
        self.rows[name].add("chatcache", seconds)


def measure(
    loaded: BenchModel,
    tuned: BenchModel,
    directory: Path,
    tokens: int,
    runs: int,
    say: Callable[[str], None],
) -> BenchResult:
    """Run everything; `say` gets a line of progress per step.

    `loaded` is the model as transformers makes it, `tuned` the same as chatcache runs it.
    """
    say(f"{loaded.name}: {loaded.num_parameters:,} parameters, {loaded.dtype}, {tokens:,} tokens")
    bench = Bench(loaded, tuned, directory, tokens)
    bench.prepare()
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: cold")
        bench.run_cold()
        bench.run_short()
        say(f"run {run} of {runs}: resume, fork, switch")
        bench.run_resumed()
    limits = bench.label()
    bench.close()
    return BenchResult(_conditions(loaded, tokens, runs), limits, bench.rows, bench.bytes_written)


def _conditions(loaded: BenchModel, tokens: int, runs: int) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "parameters": loaded.num_parameters,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "message_tokens": MESSAGE_TOKENS,
        "runs": runs,
        "cpu": _cpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
