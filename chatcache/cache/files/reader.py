"""Reading part of a segment file straight into the live KV, or its checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from chatcache.cache.files.segfile import SegmentDamagedError, SegmentFile
from chatcache.cache.segments import KVSink, Span
from chatcache.machine import allowance
from chatcache.token_ids import TokenIds

_MOST_THREADS = 6
_MIN_BYTES_FOR_THREADS = 8 << 20  # below this they cost more than they bring

STATE_PREFIXES = ("conv.", "recurrent.")


def read_segment(path: Path, ids: TokenIds, sink: KVSink, start: int, span: Span) -> int:
    """Bring positions `start` to `span.stop` from the file into `sink`; returns the bytes read.

    The ids in the file are compared with those of the prompt, and every checksum is compared,
    before anything counts. Raises SegmentDamagedError or SegmentMissingError.
    """
    with SegmentFile(path) as file:
        _check(file, ids, start, span)
        names = [name for name in file.tensor_names if not name.startswith(STATE_PREFIXES)]
        try:
            return _read_tensors(file, names, sink, start, span)
        except ValueError as error:
            raise SegmentDamagedError(str(error)) from error


def read_states(path: Path, ids: TokenIds, sink: KVSink, span: Span) -> int:
    """Bring the checkpoint at the end of the segment into `sink`; returns the bytes read.

    `span` is the whole segment. Raises SegmentDamagedError or SegmentMissingError; the states of
    the sink are what they were then.
    """
    with SegmentFile(path) as file:
        _check(file, ids, span.start, span)
        num_bytes = 0
        try:
            for name in file.tensor_names:
                if name.startswith(STATE_PREFIXES):
                    memory = sink.writable_state(name, file.dtype(name), file.shape(name))
                    num_bytes += file.read_into(name, [memory])
            sink.states_written()
        except ValueError as error:
            raise SegmentDamagedError(str(error)) from error
        return num_bytes


def _check(file: SegmentFile, ids: TokenIds, start: int, span: Span) -> None:
    """That the file is the segment, and its ids from `start` on are those of the path."""
    header = file.header
    if header.segment_id != span.segment_id or not header.start <= start < header.stop:
        raise SegmentDamagedError("the file is not the segment that its name says")
    wanted = ids[start : span.stop]
    offset = start - header.start
    if header.token_ids[offset : offset + len(wanted)] != wanted:
        raise SegmentDamagedError("the file holds other tokens than it should")


def _read_tensors(
    file: SegmentFile, names: Sequence[str], sink: KVSink, start: int, span: Span
) -> int:
    """All tensors, in order; large ones by several threads, few at a time.

    One thread copies from the page cache, or compares a checksum, while another waits for the disk.
    """
    num_bytes = sum(file.num_bytes(name) for name in names)
    if num_bytes < _MIN_BYTES_FOR_THREADS:
        for name in names:
            _reading(file, name, sink, start, span)()
            sink.written(name, start)
        return num_bytes
    running: deque[tuple[str, Future[None]]] = deque()
    num_threads = _num_threads()
    with ThreadPoolExecutor(num_threads, "restore") as threads:
        for name in names:
            running.append((name, threads.submit(_reading(file, name, sink, start, span))))
            if len(running) > num_threads:
                _finish(sink, start, *running.popleft())
        while running:
            _finish(sink, start, *running.popleft())
    return num_bytes


@cache
def _num_threads() -> int:
    """Two, or half of the cores where there are many."""
    return min(max(2, allowance().num_threads // 2), _MOST_THREADS)


def _finish(sink: KVSink, start: int, name: str, reading: Future[None]) -> None:
    reading.result()
    sink.written(name, start)


def _reading(
    file: SegmentFile, name: str, sink: KVSink, start: int, span: Span
) -> Callable[[], None]:
    """What reads one tensor into the sink's memory, which is made now."""
    dtype, shape, first = file.dtype(name), file.shape(name), file.header.start
    if start == first or shape[1] != file.header.num_tokens:
        # The whole tensor lands in place (always, if it is not about single tokens). What lies
        # behind `span.stop` is not counted by the sink and is overwritten by what comes next.
        memory = sink.writable(name, dtype, shape, start)
        return lambda: _read_whole(file, name, memory)
    part = (shape[0], span.stop - start, *shape[2:])
    memory = sink.writable(name, dtype, part, start)
    return lambda: _read_part(file, name, memory, start - first)


def _read_whole(file: SegmentFile, name: str, memory: list[memoryview]) -> None:
    file.read_into(name, memory)


def _read_part(file: SegmentFile, name: str, memory: list[memoryview], offset: int) -> None:
    """Tokens from `offset` on, a piece of memory per head; all are read, for the checksum."""
    num_heads, num_tokens = file.shape(name)[:2]
    whole = memoryview(bytearray(file.num_bytes(name)))
    file.read_into(name, [whole])
    stride = whole.nbytes // (num_heads * num_tokens)
    for head, target in enumerate(memory):
        begin = (head * num_tokens + offset) * stride
        target[:] = whole[begin : begin + target.nbytes]
