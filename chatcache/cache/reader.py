"""Reading part of a segment file straight into the live KV, or its checkpoint."""

from __future__ import annotations

from pathlib import Path

from chatcache.cache.entries import KVSink
from chatcache.cache.radix import Span
from chatcache.cache.segfile import SegmentDamagedError, SegmentFile
from chatcache.cache.tokens import BYTES_PER_ID

STATE_PREFIXES = ("conv.", "recurrent.")


def read_segment(path: Path, packed: bytes, sink: KVSink, start: int, span: Span) -> int:
    """Bring positions `start` to `span.stop` from the file into `sink`; returns the bytes read.

    The ids in the file are compared with those of the prompt, and every checksum is compared,
    before anything counts. Raises SegmentDamagedError or SegmentMissingError.
    """
    with SegmentFile(path) as file:
        _check(file, packed, start, span)
        names = [name for name in file.tensor_names if not name.startswith(STATE_PREFIXES)]
        try:
            return sum(_read_tensor(file, name, sink, start, span) for name in names)
        except ValueError as error:
            raise SegmentDamagedError(str(error)) from error


def read_states(path: Path, packed: bytes, sink: KVSink, span: Span) -> int:
    """Bring the checkpoint at the end of the segment into `sink`; returns the bytes read.

    `span` is the whole segment. Raises SegmentDamagedError or SegmentMissingError; the states of
    the sink are what they were then.
    """
    with SegmentFile(path) as file:
        _check(file, packed, span.start, span)
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


def _check(file: SegmentFile, packed: bytes, start: int, span: Span) -> None:
    """That the file is the segment, and its ids from `start` on are those of the path."""
    header = file.header
    if header.segment_id != span.segment_id or not header.start <= start < header.stop:
        raise SegmentDamagedError("the file is not the segment that its name says")
    wanted = packed[start * BYTES_PER_ID : span.stop * BYTES_PER_ID]
    offset = (start - header.start) * BYTES_PER_ID
    if header.token_ids[offset : offset + len(wanted)] != wanted:
        raise SegmentDamagedError("the file holds other tokens than it should")


def _read_tensor(file: SegmentFile, name: str, sink: KVSink, start: int, span: Span) -> int:
    dtype, shape, first = file.dtype(name), file.shape(name), file.header.start
    if start == first:
        # The whole tensor lands in place. What lies behind `span.stop` is not counted by the sink
        # and is overwritten by the tokens that come next.
        size = file.read_into(name, sink.writable(name, dtype, shape, start))
        sink.written(name, start)
        return size
    num_heads, num_tokens = shape[0], shape[1]
    num_bytes = file.num_bytes(name)
    whole = memoryview(bytearray(num_bytes))
    file.read_into(name, [whole])
    stride = num_bytes // (num_heads * num_tokens)
    part = (num_heads, span.stop - start, *shape[2:])
    for head, target in enumerate(sink.writable(name, dtype, part, start)):
        begin = (head * num_tokens + start - first) * stride
        target[:] = whole[begin : begin + target.nbytes]
    sink.written(name, start)
    return num_bytes
