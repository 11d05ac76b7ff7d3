"""How a store of 100,000 segments opens and matches: `python -m tests.slow.store_scale DIRECTORY`.

The segments are as a person's chats leave them: some twenty system prompts, turns of a question and
an answer, forks, scripts that begin every question alike, and one path of 32,000 tokens. Headers
have the size of a real model's (28 layers); the tensors are one byte per token and layer, because
neither opening nor matching reads them. A directory is filled once, and used again when it is full.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatcache.cache.book.namespace import chain_digest
from chatcache.cache.files.segfile import SegmentHeader, TensorSource, write_segment
from chatcache.cache.prefix import PrefixCache
from chatcache.token_ids import TokenIds

NAMESPACE = "scale"
NUM_LAYERS = 28
LONG_TOKENS = 32_000
_BUDGET = 1 << 50
_TEMPLATE_IDS = (1, 872, 198)  # what every user message begins with
_VOCABULARY = 150_000


@dataclass(frozen=True)
class Piece:
    """One segment to write: the path up to its end, where it begins, and its parent's id."""

    path: TokenIds
    start: int
    parent_id: str | None

    @property
    def segment_id(self) -> str:
        return chain_digest(NAMESPACE, self.start, self.path)


class Chats:
    """Random chats that share system prompts, fork, and begin alike."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._systems = [self._ids(self._random.randint(40, 800)) for _ in range(20)]
        self._instruction = self._ids(80)

    def long_path(self) -> list[Piece]:
        """One conversation of 32,000 tokens in 101 segments."""
        pieces = [Piece(TokenIds(self._systems[0][:40]), 0, None)]
        while len(pieces) < 101:
            length = (LONG_TOKENS - 40) // 100 if len(pieces) < 100 else None
            total = len(pieces[-1].path)
            pieces.append(self._after(pieces[-1], self._ids(length or LONG_TOKENS - total)))
        return pieces

    def endless(self) -> Iterator[Piece]:
        """Segments, chat by chat; a parent comes before its children. Some come twice."""
        while True:
            system = self._systems[min(int(self._random.expovariate(0.4)), 19)]
            last = Piece(TokenIds(system), 0, None)
            yield last
            forks = []
            is_script = self._random.random() < 0.15
            for turn in range(1 if is_script else self._random.randint(1, 12)):
                question = [*_TEMPLATE_IDS, *(self._instruction if is_script else [])]
                last = self._after(last, question + self._ids(self._random.randint(5, 120)))
                yield last
                forks.append(last)
                last = self._after(last, self._ids(self._random.randint(20, 300)))
                yield last
                if self._random.random() < 0.1:
                    last = forks[self._random.randrange(turn + 1)]

    def _after(self, piece: Piece, ids: list[int]) -> Piece:
        start = len(piece.path)
        return Piece(piece.path + TokenIds(ids), start, piece.segment_id)

    def _ids(self, length: int) -> list[int]:
        return [self._random.randrange(_VOCABULARY) for _ in range(length)]


def write_piece(directory: Path, piece: Piece) -> bool:
    """Write the file of a segment; False if it is there already."""
    stop = len(piece.path)
    path = directory / f"{piece.start}-{stop}-{piece.segment_id}.safetensors"
    if path.exists():
        return False
    num_tokens = stop - piece.start
    ids = piece.path[piece.start :]
    header = SegmentHeader(
        piece.segment_id, piece.parent_id, NAMESPACE, piece.start, stop, ids, time.time(), "scale"
    )
    zeros = memoryview(bytes(num_tokens))
    tensors = [
        TensorSource(f"{kind}.{layer}", "U8", (1, num_tokens, 1), (zeros,))
        for layer in range(NUM_LAYERS)
        for kind in ("key", "value")
    ]
    with path.open("wb") as file:
        write_segment(file, header, tensors)
    used = time.time() - random.Random(piece.segment_id).random() * 30 * 86_400
    os.utime(path, (used, used))
    return True


def fill(cache_dir: Path, num_segments: int) -> TokenIds:
    """Write that many segments, unless it was done before; returns the long path."""
    directory = cache_dir / "segments" / NAMESPACE
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    chats = Chats(seed=1)
    long_path = chats.long_path()
    if sum(1 for _ in directory.glob("*.safetensors")) < num_segments:
        missing = num_segments - sum(write_piece(directory, piece) for piece in long_path)
        for piece in chats.endless():
            missing -= write_piece(directory, piece)
            if missing == 0:
                break
    return long_path[-1].path


def measure(cache_dir: Path, long_path: TokenIds) -> dict[str, float]:
    """Milliseconds to open, for the first match of the long path, and for the next ones."""
    cache = PrefixCache(cache_dir, NAMESPACE, ram_budget=_BUDGET, disk_budget=_BUDGET)
    began = time.perf_counter()
    cache.open({})
    opened = time.perf_counter()
    first = cache.lookup(long_path).num_tokens
    matched = time.perf_counter()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        again = cache.lookup(long_path).num_tokens
        times.append(time.perf_counter() - start)
    assert first == again == LONG_TOKENS, (first, again)
    cache.close()
    return {
        "open_ms": 1000 * (opened - began),
        "first_match_ms": 1000 * (matched - opened),
        "match_ms": 1000 * sorted(times)[len(times) // 2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    long_path = fill(options.directory, options.segments)
    runs = [measure(options.directory, long_path) for _ in range(options.runs)]
    for run in runs:
        print(json.dumps({name: round(value, 2) for name, value in run.items()}))


if __name__ == "__main__":
    main()
