"""K and V kept as 8-bit integers, for a model on a device with memory of its own.

Runs are made integers on the device and sent down behind the turn, half as many bytes; they come
back as integers, and are numbers again on the stream that brings them, one tensor at a time. What
stays on the device of a path that is left stays as it was live, in twice the bytes of its block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chatcache.cache.tensors.blocks import ResidentBlock
from chatcache.cache.tensors.device_blocks import SlabBlock, SlabTensors, TensorSpec
from chatcache.cache.tensors.device_kv import DeviceKV
from chatcache.cache.tensors.incoming import Incoming
from chatcache.cache.tensors.int8 import (
    SCALE_PREFIXES,
    SettlingKV,
    are_scales_of,
    dequantise,
    parts_of,
    scales_of,
    settle,
    stored_dtype,
)


class DeviceInt8KV(SettlingKV, DeviceKV):
    """A live KV on a device, whose blocks and files are 8-bit integers."""

    _tensors_per_layer = 4  # the scales are tensors, too

    @torch.inference_mode()
    def export(self, start: int, stop: int, states: dict[str, Tensor] | None = None) -> SlabBlock:
        """Like the exact one; what is live from `start` to `stop` is then what is in the block."""
        runs: dict[str, Tensor] = {}
        is_short = False
        for name, live in self._runs(start, stop).items():
            try:
                integers, scales = settle(live, name)
            except torch.OutOfMemoryError:  # then the host waits for each tensor
                runs, is_short = {known: run.cpu() for known, run in runs.items()}, True
                integers, scales = settle(live, name)
            made = {scales_of(name): scales.contiguous(), name: integers.contiguous()}
            runs |= {known: run.cpu() for known, run in made.items()} if is_short else made
        self.note_exported(start, stop)
        if not is_short:
            return self._export(runs, 0, states)
        block = SlabBlock(sum(run.nbytes for run in runs.values()), states)
        block.fill(SlabTensors(runs))
        return block

    @torch.inference_mode()
    def load(self, block: Any, at: int, start: int, stop: int) -> None:
        if isinstance(block, ResidentBlock):
            super().load(block, at, start, stop)
            return
        is_behind = isinstance(block, SlabBlock)
        whole = block.tensors_behind(self._up) if is_behind else block.tensors
        parts = parts_of(whole, start - at, stop - at)
        integers = {name: part for name, (part, _) in parts.items()}
        scales = {name: scales for name, (_, scales) in parts.items()}
        self._queue(Incoming(integers, start, block, scales))

    @torch.inference_mode()
    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        """Memory for the integers of a tensor, or for its scales, which come before them."""
        self._locate(name.replace("_scale", ""))
        spec = TensorSpec(shape, stored_dtype(name, dtype, shape))
        self.flush()
        if not name.startswith(SCALE_PREFIXES):
            self._make_room(name, shape, start)
        return self._reading_memory(name, spec)

    @torch.inference_mode()
    def written(self, name: str, start: int) -> None:
        if name.startswith(SCALE_PREFIXES):
            return
        known = scales_of(name)
        memory, scales = self._reading.pop(name), self._reading.pop(known, None)
        integers = memory.tensors[name]
        if scales is None or not are_scales_of(integers, scales.tensors[known], name):
            raise ValueError(f"{name} has no scales")
        layer, kind = self._locate(name)
        self._up.follow(self._compute.mark())
        read = Incoming({name: integers}, start, memory, {name: scales.tensors[known]})
        self._bring(read, name, layer.slot(kind, start, read.stop))
        layer.arrival = self._up.mark()
        self._in_flight.hold(layer.arrival, memory, scales)
        self._note_read(start, read.stop, {known: scales, name: memory})

    def _bring(self, load: Incoming, name: str, target: Tensor) -> None:
        integers, scales = load.tensors[name], load.scales[name]

        def work() -> None:
            target.copy_(dequantise(self._sent(integers), self._sent(scales)))

        self._up.run(work)

    def _sent(self, run: Tensor) -> Tensor:
        """A copy on the device, of memory that is contiguous within a head."""
        if run.is_contiguous():
            return run.to(self._device, non_blocking=True)
        return torch.stack([head.to(self._device, non_blocking=True) for head in run])
