"""The time to the first token against the length of the history, cold and cached."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from chatcache.bench.contenders import Chatcache
from chatcache.bench.result import CHATCACHE, LLAMA_CPP, TRANSFORMERS, Point
from chatcache.bench.rows import Bench
from chatcache.bench.setup import BenchModel

COLD, DISK, RAM = "cold", "from disk", "from RAM"
LENGTHS = (256, 1024, 2048, 4096)
# The lines of the chart, slowest first, and the row of the table that is the same measurement.
_ROWS = {
    f"{TRANSFORMERS}, {COLD}": ("cold", TRANSFORMERS),
    f"{LLAMA_CPP}, {COLD}": ("cold", LLAMA_CPP),
    f"{CHATCACHE}, {COLD}": ("cold", CHATCACHE),
    f"{LLAMA_CPP}, {DISK}": ("disk", LLAMA_CPP),
    f"{CHATCACHE}, {DISK}": ("disk", CHATCACHE),
    f"{CHATCACHE}, {RAM}": ("ram", CHATCACHE),
}


def default_lengths(tokens: int) -> tuple[int, ...]:
    """Those below the history, and the history itself."""
    return (*(length for length in LENGTHS if length < tokens), tokens)


class Curve:
    """Measures the lengths that the table does not have. "From disk": page cache cold."""

    def __init__(self, bench: Bench, tuned: BenchModel, directory: Path, runs: int):
        self._bench = bench
        self._tuned = tuned
        self._directory = directory
        self._runs = runs
        self._draw = random.Random(2)

    def measure(self, lengths: Sequence[int]) -> list[Point]:
        """A point per length, in order; the medians of the runs."""
        ordered = sorted(set(lengths))
        known = len(self._bench.history)
        return [self._known() if length == known else self._point(length) for length in ordered]

    def _known(self) -> Point:
        """The point that the table has measured already."""
        rows = self._bench.rows
        medians = {line: rows[row].median(name) for line, (row, name) in _ROWS.items()}
        seconds = {line: at for line, at in medians.items() if at is not None}
        return Point(len(self._bench.history), seconds)

    def _point(self, length: int) -> Point:
        samples: dict[str, list[float]] = defaultdict(list)
        history = self._tuned.random_ids(self._draw, length)
        ours = Chatcache(self._tuned, self._directory / f"curve-{length}")
        for _ in range(self._runs):
            self._run(history, ours, samples)
        ours.close()
        ordered = [line for line in _ROWS if line in samples]
        return Point(length, {line: statistics.median(samples[line]) for line in ordered})

    def _run(self, history: list[int], ours: Chatcache, samples: dict[str, list[float]]) -> None:
        bench, llama = self._bench, self._bench.llama
        prompt = history + bench.message()
        samples[f"{TRANSFORMERS}, {COLD}"].append(bench.theirs.first_token(prompt))
        if llama is not None:
            samples[f"{LLAMA_CPP}, {COLD}"].append(llama.first_token(prompt))
            llama.keep(history)
            seconds = llama.from_disk(bench.message(), is_page_cache_cold=True)
            samples[f"{LLAMA_CPP}, {DISK}"].append(seconds)
        samples[f"{CHATCACHE}, {COLD}"].append(ours.first_token(prompt, is_cold=True)[0])
        ours.commit([len(history)])
        ours.forget_live()
        samples[f"{CHATCACHE}, {RAM}"].append(ours.first_token(history + bench.message())[0])
        ours.reopen()
        ours.drop_page_cache()
        samples[f"{CHATCACHE}, {DISK}"].append(ours.first_token(history + bench.message())[0])
