"""K and V whose bytes are a function of the ids before them, so that a wrong reuse shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chatcache.cache.prefix import PrefixCache
from chatcache.cache.segments import TensorSource
from chatcache.cache.views import TierRun
from chatcache.token_ids import TokenIds

NUM_HEADS = 2
HEAD_BYTES = 8
TENSORS = ("key.0", "value.0")
FIELDS = {"weights": "w"}
BYTES_PER_TOKEN = NUM_HEADS * HEAD_BYTES * len(TENSORS)
STATE = "recurrent.0.0"
STATE_BYTES = 16


def true_bytes(ids: TokenIds, name: str, head: int, position: int) -> bytes:
    """What a model would have computed for `position` after exactly these ids."""
    digest = hashlib.blake2b(ids[: position + 1].packed, digest_size=HEAD_BYTES)
    digest.update(f"{name}{head}".encode())
    return digest.digest()


def true_state(ids: TokenIds) -> bytes:
    """What a recurrent layer would have summed up after exactly these ids."""
    return hashlib.blake2b(ids.packed, digest_size=STATE_BYTES, person=b"state").digest()


def rows(ids: TokenIds, name: str, head: int, start: int, stop: int) -> bytes:
    return b"".join(true_bytes(ids, name, head, position) for position in range(start, stop))


class ByteBlock:
    """A block as the prefix cache sees one."""

    def __init__(self, ids: TokenIds, start: int, stop: int, *, with_states: bool = False):
        self._tensors = {
            name: [rows(ids, name, head, start, stop) for head in range(NUM_HEADS)]
            for name in TENSORS
        }
        self._num_tokens = stop - start
        self.states = true_state(ids[:stop]) if with_states else b""

    @property
    def num_bytes(self) -> int:
        return self._num_tokens * BYTES_PER_TOKEN + len(self.states)

    @property
    def has_states(self) -> bool:
        return bool(self.states)

    def sources(self) -> list[TensorSource]:
        shape = (NUM_HEADS, self._num_tokens, HEAD_BYTES)
        found = [
            TensorSource(name, "U8", shape, tuple(memoryview(head) for head in heads))
            for name, heads in self._tensors.items()
        ]
        if self.states:
            found.append(TensorSource(STATE, "U8", (STATE_BYTES,), (memoryview(self.states),)))
        return found

    def part(self, name: str, head: int, start: int, stop: int) -> bytes:
        return self._tensors[name][head][start * HEAD_BYTES : stop * HEAD_BYTES]


class ByteSink:
    """The live KV: a growing row of bytes per tensor and head, and where each token came from."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.tiers: list[str] = []
        self.state = b""
        self._state_memory = bytearray(STATE_BYTES)
        self._rows = {(name, head): bytearray() for name in TENSORS for head in range(NUM_HEADS)}

    def adopt(self, block: ByteBlock, num_tokens: int) -> bool:
        return False

    def load(self, block: ByteBlock, at: int, start: int, stop: int) -> None:
        self._note(start, stop, "ram")
        for (name, head), row in self._rows.items():
            self._reserve(row, stop)
            row[start * HEAD_BYTES : stop * HEAD_BYTES] = block.part(
                name, head, start - at, stop - at
            )

    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        stop = start + shape[1]
        self._note(start, stop, "disk")
        found = []
        for head in range(shape[0]):
            row = self._rows[name, head] = bytearray(self._rows[name, head])
            self._reserve(row, stop)
            found.append(memoryview(row)[start * HEAD_BYTES : stop * HEAD_BYTES])
        return found

    def written(self, name: str, start: int) -> None:
        pass

    def flush(self) -> None:
        pass

    def set_length(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def load_states(self, block: ByteBlock) -> None:
        self.state = block.states

    def writable_state(self, name: str, dtype: str, shape: tuple[int, ...]) -> memoryview:
        assert (name, dtype, shape) == (STATE, "U8", (STATE_BYTES,))
        return memoryview(self._state_memory)

    def states_written(self) -> None:
        self.state = bytes(self._state_memory)

    def is_true_to(self, ids: TokenIds) -> bool:
        """Whether every token that counts has the bytes of these ids."""
        return all(
            row[: self.num_tokens * HEAD_BYTES] == rows(ids, name, head, 0, self.num_tokens)
            for (name, head), row in self._rows.items()
        )

    def came_as(self, runs: Iterable[TierRun]) -> bool:
        """Whether every token that counts came from where the runs say."""
        told: list[str] = []
        for run in runs:
            told += [run.tier] * (run.stop - len(told))
        return told == self.tiers[: self.num_tokens]

    def _note(self, start: int, stop: int, tier: str) -> None:
        self.tiers[start:] = [tier] * (stop - start)

    def _reserve(self, row: bytearray, num_tokens: int) -> None:
        row.extend(bytes(max(0, num_tokens * HEAD_BYTES - len(row))))


def ids_of(text: str) -> TokenIds:
    """Text stands for its tokens: one id per character."""
    return TokenIds([ord(character) for character in text])


def boundaries_of(*parts: str) -> Sequence[int]:
    """The ends of the parts, when they are laid one after another."""
    ends, total = [], 0
    for part in parts:
        total += len(part)
        ends.append(total)
    return ends


class Bench:
    """A cache directory, and turns on it."""

    def __init__(self, directory: Path, **options: Any):
        self.directory = directory
        self.events: list[tuple[str, str]] = []
        self._options = {
            "ram_budget": 1 << 20,
            "disk_budget": 1 << 20,
            **options,
        }
        self.reopen()

    def reopen(self) -> None:
        """A new process on the same directory."""
        self.cache = PrefixCache(
            self.directory,
            "ns",
            on_event=lambda kind, text: self.events.append((kind, text)),
            **self._options,
        )
        self.cache.open(FIELDS)

    def close(self) -> None:
        self.cache.close()

    def turn(self, *parts: str) -> int:
        """Read the parts, of which the last is the answer; returns the tokens reused."""
        ids = ids_of("".join(parts))
        prompt = sum(map(len, parts[:-1]))
        sink = ByteSink()
        with self.cache.acquire(ids, prompt - 1) as lease:
            restored = self.cache.restore(lease, sink, 0)
        assert sink.num_tokens == restored.num_tokens
        assert sink.came_as(restored.runs)
        assert sink.is_true_to(ids)
        self.cache.commit(
            ids, boundaries_of(*parts), lambda start, stop: ByteBlock(ids, start, stop)
        )
        self.cache.drain()
        assert self.cache.check() == []
        return restored.num_tokens

    def files(self) -> list[Path]:
        return sorted((self.directory / "segments" / "ns").glob("*.safetensors"))
