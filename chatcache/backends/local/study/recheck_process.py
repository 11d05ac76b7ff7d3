"""The process that recomputes segments: loads the model, reads files, compares numbers.

It changes nothing. Positions and names of tensors are all it knows of a segment's layout: what the
model keeps in a cold run is compared with the tensors of the same names in the file.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.base import BackendFailed
from chatcache.backends.local.engine.channel import Channel, ChannelClosedError
from chatcache.backends.local.engine.codec import portable
from chatcache.backends.local.engine.process import inherited_socket, leave, prepare_process
from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.model.loader import LoadedModel
from chatcache.backends.local.run.assemble import build_live, load
from chatcache.backends.local.run.chunk_choice import ChunkChoice
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import LivePath, chunks
from chatcache.backends.local.study.recheck import (
    CODEC,
    RecheckFinished,
    RecheckRequest,
    RecheckStarted,
    SegmentCheck,
)
from chatcache.cache.book.namespace import chain_digest, namespace_id
from chatcache.cache.book.policy import Precision
from chatcache.cache.files.reader import STATE_PREFIXES, read_segment, read_states
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFile,
    SegmentMissingError,
)
from chatcache.cache.files.store import SegmentStore, StoredSegment
from chatcache.cache.segments import Span
from chatcache.cache.tensors.blocks import DTYPES, memory_of
from chatcache.cache.tensors.int8 import SCALE_PREFIXES, are_scales_of, dequantise, scales_of
from chatcache.errors import ChatcacheError, NotFiniteError
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

# The largest |difference| / standard deviation that is rounding. Measured between prompts in pieces
# of 512, answers token by token and cold runs of up to 28 layers: 4e-6 in float32, 0.08 in
# bfloat16; one token of wrong K or V is at 1 or above.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
INT8_TOLERANCE = 0.5  # measured: up to 0.03, as large in bfloat16 as in float32
ReadTensor = Callable[[SegmentFile, str], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Chain:
    """A segment with all ids from position 0 on, and the pieces of files that hold them."""

    stored: StoredSegment
    ids: TokenIds
    pieces: tuple[tuple[Path, Span], ...]


def chains_of(namespace: str, found: Sequence[StoredSegment]) -> list[Chain]:
    """All segments that can be followed back to position 0, in the order of their ids.

    The others cannot be recomputed; `cache verify` names them.
    """
    known: dict[str, Chain] = {}
    for stored in sorted(found, key=lambda stored: (stored.header.start, stored.header.stop)):
        header = stored.header
        parent = known.get(header.parent_id or "")
        span = Span(header.segment_id, header.start, header.stop)
        if header.start == 0:
            chain = Chain(stored, header.token_ids, ((stored.path, span),))
        elif parent is None or len(parent.ids) < header.start:
            continue
        else:
            before = _up_to(parent.pieces, header.start)
            ids = parent.ids[: header.start] + header.token_ids
            chain = Chain(stored, ids, (*before, (stored.path, span)))
        if chain_digest(namespace, header.start, chain.ids) == header.segment_id:
            known[header.segment_id] = chain
    return [known[segment_id] for segment_id in sorted(known)]


def _up_to(pieces: Sequence[tuple[Path, Span]], stop: int) -> list[tuple[Path, Span]]:
    return [
        (path, Span(span.segment_id, span.start, min(span.stop, stop)))
        for path, span in pieces
        if span.start < stop
    ]


class Recomputer:
    """Compares segments with cold runs of one model."""

    def __init__(self, loaded: LoadedModel, chunk: int, precision: Precision) -> None:
        self._loaded = loaded
        self._cut = cut_policy(loaded.model.config.get_text_config())
        self._chunk = chunk
        forward = Forward(loaded.model, loaded.device)
        self._fresh = LivePath(forward, build_live(loaded, self._cut))
        self._stored = build_live(loaded, self._cut, precision)
        self._read = _read_integers if precision == "int8" else _read_exact
        self._allowed = "what 8 bits explain" if precision == "int8" else "rounding"
        exact = TOLERANCES.get(loaded.dtype, TOLERANCES[torch.bfloat16])
        self.tolerance = max(exact, INT8_TOLERANCE) if precision == "int8" else exact

    def check(self, chain: Chain) -> SegmentCheck | None:
        """Recompute one segment and compare it; None if its file is gone meanwhile."""
        header = chain.stored.header
        check = SegmentCheck(header.segment_id, header.start, header.stop)
        logits = self._compute(chain.ids)
        expected = dict(self._fresh.kv.export(header.start, header.stop).tensors)
        if self._fresh.kv.has_states:
            expected |= self._fresh.kv.copy_states()
        try:
            differences = _compare(chain.stored.path, expected, self._read)
        except SegmentMissingError:
            return None
        except SegmentDamagedError as error:
            return replace(check, problem=str(error))
        worst = max(differences, key=lambda name: differences[name][1], default="")
        deviation = differences[worst][1] if worst else 0.0
        problem = None
        if not deviation <= self.tolerance:
            problem = (
                f"{worst} differs from what the model computes by {deviation:.2g} standard"
                f" deviations; up to {self.tolerance:g} is {self._allowed}"
            )
        return replace(
            check,
            max_dk=_largest(differences, "key."),
            max_dv=_largest(differences, "value."),
            deviation=deviation,
            worst=worst,
            top1_agrees=self._same_next(chain, logits),
            problem=problem,
        )

    def _compute(self, ids: TokenIds) -> torch.Tensor:
        """Run the model on the ids, cold; what is computed already of them stays.

        Returns the logits `[1, vocab]` behind the last."""
        # The last token is computed once more for its logits.
        fresh = self._fresh
        known = 0 if fresh.kv.has_states else min(fresh.ids.common_prefix(ids), len(ids) - 1)
        fresh.hold(ids, known)
        for step in fresh.run(ids, self._plan(known, len(ids))):
            logits = step.logits
        return logits

    def _plan(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Pieces of a prompt. Where several tokens are wrong behind a state, one by one."""
        if not self._cut.is_stepwise:
            yield from chunks(start, stop, self._chunk)
            return
        first = min(stop, self._chunk)
        yield 0, first
        yield from chunks(first, stop, 1)

    def _same_next(self, chain: Chain, logits: torch.Tensor) -> bool | None:
        """Whether what follows the next token is the same behind the stored prefix."""
        stop = chain.stored.header.stop
        if stop >= self._loaded.max_context_tokens:
            return None
        next_id = int(logits.argmax())
        live = self._stored
        live.truncate(0)
        try:
            for path, span in chain.pieces:
                read_segment(path, chain.ids, live, span.start, span)
                live.set_length(span.stop)
            if live.has_states:
                path, span = chain.pieces[-1]
                if not _has_states(path):
                    return None
                read_states(path, chain.ids, live, span)
        except (SegmentDamagedError, SegmentMissingError):
            return None
        fresh = self._fresh
        try:
            ours = fresh.forward(live, [next_id], stop)
        except NotFiniteError:
            return False
        cold = fresh.forward(fresh.kv, [next_id], stop)
        fresh.hold(chain.ids, 0 if fresh.kv.has_states else stop)
        return int(ours.argmax()) == int(cold.argmax())


def _compare(
    path: Path, expected: Mapping[str, torch.Tensor], read: ReadTensor
) -> dict[str, tuple[float, float]]:
    """By tensor name: the largest difference, and the same in standard deviations.

    Raises SegmentDamagedError for tensors that the model does not have, or lacks."""
    differences: dict[str, tuple[float, float]] = {}
    with SegmentFile(path) as file:
        names = set(file.tensor_names)
        missing = {name for name in expected if not name.startswith(STATE_PREFIXES)} - names
        if missing:
            raise SegmentDamagedError(f"{min(missing)} is not in the file")
        for name in file.tensor_names:
            if read is _read_integers and name.startswith(SCALE_PREFIXES):
                continue
            wanted = expected.get(name)
            held = None if wanted is None else read(file, name)
            if wanted is None or held is None or held.shape != wanted.shape:
                raise SegmentDamagedError(f"{name} is not a tensor of this model")
            differences[name] = _difference(held.float(), wanted.float())
    return differences


def _read_exact(file: SegmentFile, name: str) -> torch.Tensor | None:
    """A tensor of a file; None if it is none of a model's."""
    dtype = DTYPES.get(file.dtype(name))
    if dtype is None:
        return None
    held = torch.empty(file.shape(name), dtype=dtype)
    file.read_into(name, [memory_of(held)])
    return held


def _read_integers(file: SegmentFile, name: str) -> torch.Tensor | None:
    """The same where K and V are kept as integers; states are exact there, too."""
    if name.startswith(STATE_PREFIXES):
        return _read_exact(file, name)
    scales = _read_exact(file, scales_of(name))
    if file.dtype(name) != "I8" or scales is None:
        return None
    integers = torch.empty(file.shape(name), dtype=torch.int8)
    file.read_into(name, [memory_of(integers)])
    return dequantise(integers, scales) if are_scales_of(integers, scales, name) else None


def _difference(held: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    largest = float((held - wanted).abs().max()) if held.numel() else 0.0
    if not math.isfinite(largest):
        return math.inf, math.inf
    deviation = float(wanted.std(correction=0)) if wanted.numel() else 0.0
    return largest, largest / deviation if deviation else (math.inf if largest else 0.0)


def _has_states(path: Path) -> bool:
    with SegmentFile(path) as file:
        return any(name.startswith(STATE_PREFIXES) for name in file.tensor_names)


def _largest(differences: Mapping[str, tuple[float, float]], prefix: str) -> float | None:
    found = [value[0] for name, value in differences.items() if name.startswith(prefix)]
    return max(found) if found else None


def choose(chains: Sequence[Chain], num_samples: int, seed: int) -> list[Chain]:
    """A sample that is the same for the same segments, ordered so that paths are computed once."""
    chosen = random.Random(seed).sample(list(chains), min(num_samples, len(chains)))
    return sorted(chosen, key=lambda chain: chain.ids)


def run(request: RecheckRequest, send: Callable[[object], None]) -> None:
    """Load the model, and send what is found."""
    settings = request.settings
    loaded = load(settings, send)
    precision = settings.policy.precision
    fields = loaded.namespace_fields(precision)
    namespace = namespace_id(fields)
    found, _ = SegmentStore(settings.cache_dir, namespace).scan()
    chains = chains_of(namespace, found)
    chosen = choose(chains, request.num_samples, request.seed)
    kept = ChunkChoice(loaded, settings.cache_dir / "segments" / namespace)
    chunk = settings.prefill_chunk_tokens or kept.num_tokens
    recomputer = Recomputer(loaded, chunk, precision)
    numbers = (recomputer.tolerance, len(chains), len(chosen))
    send(RecheckStarted(namespace, fields["dtype"], *numbers, precision))
    for chain in chosen:
        check = recomputer.check(chain)
        if check is not None:
            send(check)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chatcache-recheck")
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args(arguments)
    prepare_process()
    channel = Channel(inherited_socket(options.fd), CODEC)
    try:
        request: Any = channel.receive()
        try:
            run(request, channel.send)
        except ChannelClosedError:
            raise
        except Exception as error:
            if not isinstance(error, ChatcacheError):
                log.exception("recomputing failed")
            channel.send(BackendFailed(portable(error)))
            return 1
        channel.send(RecheckFinished())
    except ChannelClosedError:
        pass  # Whoever asked has gone, and with them the question.
    return 0


if __name__ == "__main__":
    leave(main())
