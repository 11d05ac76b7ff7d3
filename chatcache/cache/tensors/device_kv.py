"""The live KV on a device with memory of its own, and the ways of its runs there and back.

    `export`    to a block in slabs     on a stream of its own, behind the turn
    `load`      from a block            on another one, layer by layer: each layer of the model
    `writable`  from a file, by a slab  waits for its own K and V only
    `reside`    to a resident           a copy on the device, when the path is left

Nothing is lent here: a copy on the device takes milliseconds, and captured graphs want the live
path where it was. Every method is called by the thread that computes; copies down are queued by
a thread of their own, because slabs may have to be made for them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from chatcache.cache.segments import LostBlockError
from chatcache.cache.tensors.blocks import DTYPES, ResidentBlock, memory_of
from chatcache.cache.tensors.buckets import BucketLayer
from chatcache.cache.tensors.device_blocks import (
    SlabBlock,
    SlabTensors,
    TensorSpec,
    carve_tensors,
)
from chatcache.cache.tensors.incoming import Incoming, rows_of, size_of
from chatcache.cache.tensors.layers import Buffers
from chatcache.cache.tensors.link import (
    Brought,
    Event,
    InFlight,
    Link,
    Stopwatch,
    Stream,
    copy_run,
)
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.cache.tensors.slabs import SLAB_BYTES, Slabs

log = logging.getLogger(__name__)

SHARED_PIECE_BYTES = SLAB_BYTES // 4
_READY_SLABS = 4


class ArrivingLayer(BucketLayer):  # type: ignore[no-untyped-call]
    """A layer whose K and V may be on their way: whatever touches them follows their arrival."""

    def __init__(self, compute: Stream):
        super().__init__()
        self._compute = compute
        self.arrival: Event | None = None

    def arrive(self) -> None:
        """What the model computes from now on finds everything in its place."""
        if self.arrival is not None:
            self._compute.follow(self.arrival)
            self.arrival = None

    def slot(self, kind: str, start: int, stop: int) -> Tensor:
        """`[num_kv_heads, stop - start, head_dim]`, to copy to behind what is on its way."""
        return self.home.tensors[kind][0, :, start:stop]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.arrive()
        return super().update(key_states, value_states, *args, **kwargs)

    def view(self, kind: str, start: int = 0, stop: int | None = None) -> Tensor:
        self.arrive()
        return super().view(kind, start, stop)

    def _move(self, room: int, *, is_same: bool = False) -> None:
        self.arrive()
        super()._move(room, is_same=is_same)


class _Export:
    """Live tokens before `stop` are read until `block` has arrived. `computed` is when `runs` can
    be read. Shared by the thread that computes and that of the copies."""

    def __init__(self, stop: int, block: SlabBlock, runs: Mapping[str, Tensor], computed: Event):
        self.stop, self.block = stop, block
        self._runs, self._computed = runs, computed
        self._lock = threading.Lock()
        self._has_begun = False

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(tuple(run.shape), run.dtype) for name, run in self._runs.items()}

    def begin(self) -> tuple[Mapping[str, Tensor], Event]:
        """What to copy, and behind what: from now on it stays that."""
        with self._lock:
            self._has_begun = True
            return self._runs, self._computed

    def detach(self, compute: Stream) -> bool:
        """Read a copy on the device instead of the live path, whose memory is free at once; False:
        the copies have begun, or there is no room."""
        with self._lock:
            if self._has_begun:
                return False
            try:
                self._runs = {name: run.clone() for name, run in self._runs.items()}
            except torch.OutOfMemoryError:
                return False
            self._computed, self.stop = compute.mark(), 0
            return True


class DeviceKV(LiveKV):
    """A live KV on a device, for models with attention in all layers. Its blocks lie in slabs of
    about `slab_budget` bytes at most; `warn` hears of what is slower than it could be."""

    _tensors_per_layer = 2  # in a block

    def __init__(
        self,
        num_layers: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        link: Link,
        slab_budget: int,
        slab_bytes: int = SLAB_BYTES,
    ):
        self.link = link
        self._compute = link.compute
        super().__init__(num_layers, dtype, device, new_layer=self._new_layer)
        self._arriving = {
            number: layer
            for number, layer in self._growing.items()
            if isinstance(layer, ArrivingLayer)
        }
        self.warn: Callable[[str], None] = log.warning
        self._up, self._down = link.stream(), link.stream()
        self._in_flight = InFlight()
        self.slabs = Slabs(
            link.pinned,
            slab_budget,
            self._in_flight.wait_for_one,
            lambda text: self.warn(text),
            slab_bytes,
        )
        self._slab_bytes = slab_bytes
        self._sender = ThreadPoolExecutor(1, "kv-down")
        self._exports: list[_Export] = []
        self._loadings: list[Incoming] = []
        self._residents: list[Incoming] = []
        self._stopwatch = Stopwatch()
        self._reading: dict[str, SlabTensors] = {}
        self._read: dict[tuple[int, int], dict[str, SlabTensors]] = {}

    def _new_layer(self) -> ArrivingLayer:
        return ArrivingLayer(self._compute)

    @property
    def is_staged(self) -> bool:
        return True

    @property
    def is_queueing(self) -> bool:
        return True

    @property
    def pinned_bytes(self) -> int | None:
        return self.slabs.num_bytes

    # on the device

    @torch.inference_mode()
    def truncate(self, num_tokens: int) -> None:
        self._in_flight.release()
        self._exports = [export for export in self._exports if not export.block.has_arrived()]
        for export in self._exports:
            # What comes next is written where this is still read.
            if export.stop > num_tokens and not export.detach(self._compute):
                with contextlib.suppress(LostBlockError):
                    export.block.tensors_behind(self._compute)
        self._loadings = [load for load in self._loadings if load.start < num_tokens]
        self._residents = [load for load in self._residents if load.start < num_tokens]
        self._reading.clear()
        self._read = {run: read for run, read in self._read.items() if run[1] <= num_tokens}
        super().truncate(num_tokens)

    def arrive(self) -> None:
        """All that is on its way is there for whatever the model computes from now on."""
        for layer in self._arriving.values():
            layer.arrive()

    def claim_buckets(self, start: int, stop: int) -> list[Buffers] | None:
        self.arrive()
        return super().claim_buckets(start, stop)

    def _runs(self, start: int, stop: int) -> dict[str, Tensor]:
        self.flush()
        return super()._runs(start, stop)

    # down

    @torch.inference_mode()
    def export(self, start: int, stop: int, states: dict[str, Tensor] | None = None) -> SlabBlock:
        """Tokens `start` to `stop` on their way into host memory; nothing waits for them here."""
        return self._export(self._runs(start, stop), stop, states)

    def _export(
        self, runs: Mapping[str, Tensor], stop: int, states: dict[str, Tensor] | None
    ) -> SlabBlock:
        """Send `runs` on their way; live tokens before `stop` are read until they have arrived."""
        block = SlabBlock(sum(run.nbytes for run in runs.values()), states)
        export = _Export(stop, block, runs, self._compute.mark())
        self._exports.append(export)
        self._sender.submit(self._send, export)
        return block

    @torch.inference_mode()
    def _send(self, export: _Export) -> None:
        """Queue the copies into a block (in the thread of the copies)."""
        block = export.block
        runs: Mapping[str, Tensor] = {}
        memory: SlabTensors | None = None
        try:  # slabs may take long to be made
            memory = carve_tensors(self.slabs, export.specs, SHARED_PIECE_BYTES)
            runs, computed = export.begin()
            self._down.follow(computed)
            for name, run in runs.items():
                copy_run(self._down, memory.tensors[name], run)
            arrival = self._down.mark()
        except Exception as error:
            log.exception("keys and values could not be copied to host memory")
            block.lose(str(error).partition("\n")[0] or type(error).__name__)
            if memory is not None:
                self._in_flight.hold(self._down.mark(), memory, runs)
            return
        self._in_flight.hold(arrival, memory, runs)
        block.fill(memory, arrival)

    def get_ready(self) -> Future[None]:
        """Make slabs for the first turns, in the thread of the copies."""
        return self._sender.submit(self.slabs.prepare, _READY_SLABS * self._slab_bytes)

    def wait_for_exports(self) -> None:
        """Have the host wait until all that was exported is in its memory."""
        for export in self._exports:
            with contextlib.suppress(LostBlockError):
                _ = export.block.tensors

    def lend(self, start: int, stop: int) -> SlabBlock | None:
        """The run as it was read from a file, where the slabs have it still."""
        read = self._read.pop((start, stop), {})
        if len(read) < self._tensors_per_layer * len(self._growing):
            return None
        whole = SlabTensors()
        for tensors in read.values():
            whole.join(tensors)
        block = SlabBlock(whole.num_bytes)
        block.fill(whole)
        return block

    # up

    @torch.inference_mode()
    def load(self, block: Any, at: int, start: int, stop: int) -> None:
        """Take tokens `start` to `stop` of a block whose first token has position `at`, or of a
        resident. `flush` sends them on their way. Raises LostBlockError."""
        is_behind = isinstance(block, SlabBlock)
        whole = block.tensors_behind(self._up) if is_behind else block.tensors
        part = {name: tensor[:, start - at : stop - at] for name, tensor in whole.items()}
        self._queue(Incoming(part, start, block))

    def _queue(self, loading: Incoming) -> None:
        """Have it brought with the next flush, to where there is room for it."""
        for name, run in loading.tensors.items():
            self._make_room(name, tuple(run.shape), loading.start)
        is_there = isinstance(loading.owner, ResidentBlock)
        (self._residents if is_there else self._loadings).append(loading)

    @torch.inference_mode()
    def flush(self) -> None:
        """Send what was loaded on its way: of all runs the first layer first."""
        residents, self._residents = self._residents, []
        if residents:
            with self._stopwatch.timing(self._compute, "vram", *size_of(residents)):
                for row in rows_of(residents):
                    self._place(row)
        loadings, self._loadings = self._loadings, []
        if not loadings:
            return
        self._up.follow(self._compute.mark())
        try:
            with self._stopwatch.timing(self._up, "ram", *size_of(loadings)):
                for number, layer in self._arriving.items():
                    for kind in ("key", "value"):
                        for load in loadings:
                            self._bring(
                                load, f"{kind}.{number}", layer.slot(kind, load.start, load.stop)
                            )
                    layer.arrival = self._up.mark()
        finally:
            self._in_flight.hold(self._up.mark(), loadings)

    def brought(self) -> list[Brought]:
        return self._stopwatch.take()

    def _bring(self, load: Incoming, name: str, target: Tensor) -> None:
        """Queue one tensor of what was loaded on its way to `target`."""
        run = load.tensors[name]
        copy_run(self._up, target, run, is_whole=run.is_contiguous())

    def _reading_memory(self, name: str, spec: TensorSpec) -> list[memoryview]:
        """Memory in slabs that a file is read into, a piece per head."""
        memory = carve_tensors(self.slabs, {name: spec}, SHARED_PIECE_BYTES)
        self._reading[name] = memory
        return [memory_of(head) for head in memory.tensors[name]]

    @torch.inference_mode()
    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        if DTYPES.get(dtype) != self._dtype or len(shape) != 3:
            raise ValueError(f"{name} is {dtype}{list(shape)}, the model wants {self._dtype}")
        self.flush()
        self._make_room(name, shape, start)
        return self._reading_memory(name, TensorSpec(shape, self._dtype))

    @torch.inference_mode()
    def written(self, name: str, start: int) -> None:
        memory = self._reading.pop(name)
        run = memory.tensors[name]
        layer, kind = self._locate(name)
        self._up.follow(self._compute.mark())
        copy_run(self._up, layer.slot(kind, start, start + run.shape[1]), run)
        layer.arrival = self._up.mark()
        self._in_flight.hold(layer.arrival, memory)
        self._note_read(start, start + run.shape[1], {name: memory})

    def _note_read(self, start: int, stop: int, read: Mapping[str, SlabTensors]) -> None:
        """What was read from a file of this run may become its block, where the slabs have room."""
        if self.slabs.has_room(0):
            self._read.setdefault((start, stop), {}).update(read)

    def _place(self, residents: Sequence[Incoming]) -> None:
        """Copy runs that follow one another into the live path: a few long copies, where a
        conversation may be many short runs."""
        start = residents[0].start
        for number, layer in self._arriving.items():
            for kind in ("key", "value"):
                runs = [resident.tensors[f"{kind}.{number}"] for resident in residents]
                stop = start + sum(run.shape[1] for run in runs)
                target = layer.view(kind, start, stop)[0]
                try:
                    target.copy_(runs[0] if len(runs) == 1 else torch.cat(runs, dim=1))
                except torch.OutOfMemoryError:  # without another copy, then
                    for resident, run in zip(residents, runs, strict=True):
                        layer.slot(kind, resident.start, resident.stop).copy_(run)

    def _make_room(self, name: str, shape: tuple[int, ...], start: int) -> None:
        """Have the live path take a run of this shape. Raises ValueError if it is not of this
        model."""
        layer, kind = self._locate(name)
        layer.allocate(kind, shape[0], shape[2], self._dtype, self._device)
        stop = start + shape[1]
        layer.claim(start, stop)
        if (found := tuple(layer.slot(kind, start, stop).shape)) != shape:
            raise ValueError(f"{name} is {list(shape)}, the model wants {list(found)}")

    def _locate(self, name: str) -> tuple[ArrivingLayer, str]:
        layer, kind = super()._locate(name)
        return self._arriving[layer.number], kind
