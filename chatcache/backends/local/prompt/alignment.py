"""How much of a journal a new render still begins with, and the ids of the new prompt.

Owns: the comparison of ids that were really read and produced with the text that the template
renders now. It works in symbols (see `symbols.py`), so ids that no tokenizer would choose but that
spell the same text are kept, and text that looks like a control token is no control token. Knows
nothing of messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatcache.backends.local.prompt.detokenize import REPLACEMENT, CharacterStream
from chatcache.backends.local.prompt.symbols import SymbolCodec
from chatcache.token_ids import TokenIds

_CONTEXT_IDS = 8


@dataclass(frozen=True, slots=True)
class JournalMatch:
    """`ids` is the new prompt: the journal's first `keep` ids, then canonical ids.

    `offset` is the position in the render that `keep` stands for.
    """

    ids: TokenIds
    keep: int
    offset: int


def extend_journal(codec: SymbolCodec, journal: TokenIds, render: str, marker: str) -> JournalMatch:
    """Keep the longest part of `journal` that `render` begins with; encode the rest.

    What is kept ends where the canonical ids of the rest begin, so no merge of the tokenizer is
    cut. Never keeps less than the common prefix with a fresh tokenisation. Time is linear in both.
    """
    ids = journal[: codec.num_known(journal)]
    kept, offset = _match_segments(codec, ids, render, marker)
    after = ids[kept - 1] if kept and ids[kept - 1] in codec.control_ids else None
    fresh = TokenIds(codec.encode(render[offset:], marker, after))
    stop, fresh_start = _align(codec, ids, kept, fresh)
    if fresh_start:
        offset += _rendered_length(codec, fresh, fresh_start, render[offset:], marker)
    return JournalMatch(ids[:stop] + fresh[fresh_start:], stop, offset)


def _match_segments(
    codec: SymbolCodec, journal: TokenIds, render: str, marker: str
) -> tuple[int, int]:
    """(number of ids, offset in the render) up to the last boundary at a control token that agrees.

    A run of text that agrees counts only if a control token or the end follows it on both sides:
    only there no merge can reach across.
    """
    ids, kept, offset = journal.to_list(), 0, 0
    segments = codec.segments(render)
    for start, stop in codec.runs(ids):
        segment = next(segments, None)
        if segment is None:
            break
        if ids[start] in codec.control_ids:
            if segment.token_id != ids[start]:
                break
        else:
            text = codec.run_text(ids, start, stop)
            if marker in text or segment.token_id is not None:
                break
            if codec.mark(text, marker) != segment.text:
                break
        kept, offset = stop, segment.start + len(segment.text)
    return kept, offset


def _align(codec: SymbolCodec, old: TokenIds, start: int, new: TokenIds) -> tuple[int, int]:
    """The last boundary up to which `old[start:]` and `new` spell the same symbols.

    Where the ids differ both sides are decoded id by id until they meet again.
    """
    at, new_at = start, 0
    while True:
        num_equal = old[at:].common_prefix(new, new_at)
        at, new_at = at + num_equal, new_at + num_equal
        if at == len(old) or new_at == len(new):
            return at, new_at
        meeting = _meet(codec, old, at, new, new_at)
        if meeting is None:
            return at, new_at
        at, new_at = meeting


def _meet(
    codec: SymbolCodec,
    old: TokenIds,
    at: int,
    new: TokenIds,
    new_at: int,
) -> tuple[int, int] | None:
    """The next boundary at which both sides have spelt the same text; None if they never do.

    Decoding begins at a whole character: behind half a one some decoders garble all that follows,
    and different text would look alike.
    """
    context = _whole_context(codec, old[max(0, at - _CONTEXT_IDS) : at].to_list())
    if at and not context:
        return None
    streams = (CharacterStream(codec.decode, context), CharacterStream(codec.decode, context))
    sides = (old, new)
    positions = [at, new_at]
    pending = ["", ""]
    while True:
        side = 0 if len(pending[0]) <= len(pending[1]) else 1
        position = positions[side]
        if position == len(sides[side]) or sides[side][position] in codec.control_ids:
            return None
        pending[side] += streams[side].push(sides[side][position])
        positions[side] += 1
        length = min(len(pending[0]), len(pending[1]))
        if pending[0][:length] != pending[1][:length]:
            return None
        pending = [text[length:] for text in pending]
        is_level = not any(pending) and all(stream.is_clean for stream in streams)
        if is_level and positions[0] > at and positions[1] > new_at:
            return positions[0], positions[1]


def _whole_context(codec: SymbolCodec, ids: list[int]) -> list[int]:
    """The longest end of `ids` that decodes to whole characters."""
    starts = range(len(ids))
    return next((ids[at:] for at in starts if REPLACEMENT not in codec.decode(ids[at:])), [])


def _rendered_length(
    codec: SymbolCodec, fresh: TokenIds, stop: int, render: str, marker: str
) -> int:
    """How much of `render` the first `stop` of its ids stand for, but for swallowed spaces."""
    return min(len(codec.symbols(fresh[:stop].to_list(), marker)), len(render))
