"""The live K and V of one path, given to transformers as its cache; and blocks cut out of it.

It knows tensors and positions, and nothing of token ids, files or budgets. K and V can be cut after
any token. A long run is not copied into its block but lent to it, where it lies; a path that is
held like this is gone on with where it lies, too. States of recurrent and convolution layers, where
a model has such, stand at one position only: cutting leaves them behind ("torn") until a checkpoint
is loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig

from chatcache.cache.tensors.blocks import (
    DTYPES,
    KVBlock,
    LentBlock,
    ResidentBlock,
    TensorBlock,
    memory_of,
)
from chatcache.cache.tensors.buckets import BucketLayer
from chatcache.cache.tensors.layers import Buffers, GrowingLayer
from chatcache.cache.tensors.link import Brought
from chatcache.cache.tensors.recurrent import (
    copy_states,
    has_states,
    layers_for,
    load_states,
    reset_states,
    state_like,
)

# Copying less than this is quicker than what lending it may cost later: a move to other buffers.
MIN_LENT_TOKENS = 1024


class LiveKV(Cache):
    """The growing layers of the active path. All layers always hold the same tokens.

    With a `config`, the layers are those that transformers makes for it: states included.
    `new_layer` makes one without states; where graphs are captured, it has buckets.
    """

    def __init__(
        self,
        num_layers: int,
        dtype: torch.dtype,
        device: torch.device,
        config: PreTrainedConfig | None = None,
        new_layer: Callable[[], GrowingLayer] | None = None,
    ):
        if new_layer is None:
            new_layer = BucketLayer if device.type == "cuda" else GrowingLayer
        plain = [new_layer() for _ in range(num_layers)]
        layers: list[Any] = layers_for(config) if config is not None else [*plain]
        super().__init__(layers=layers)
        self._growing = {
            number: layer for number, layer in enumerate(layers) if isinstance(layer, GrowingLayer)
        }
        for number, layer in self._growing.items():
            layer.number = number
        self._dtype = dtype
        self._device = device
        self._staged: dict[str, torch.Tensor] = {}
        self._states: dict[str, torch.Tensor] = {}
        self._num_counted = 0
        self.num_states = sum(has_states(layer) for layer in layers)  # layers that have one
        self.has_states = self.num_states > 0
        self.is_torn = False

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def growing(self) -> Iterable[GrowingLayer]:
        """The layers that keep K and V, in the order of the model."""
        return self._growing.values()

    @property
    def num_tokens(self) -> int:
        if not self._growing:
            return self._num_counted
        return min(layer.num_tokens for layer in self._growing.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens held; what is lent of them is held by blocks as well, once."""
        return sum(
            layer.view(kind).nbytes
            for layer in self._growing.values()
            if layer.is_initialized
            for kind in ("key", "value")
        )

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of a token, as they are live."""
        return sum(
            tensor[:, :, :1].nbytes
            for layer in self._growing.values()
            for tensor in layer.home.tensors.values()
        )

    @property
    def is_staged(self) -> bool:
        """Whether files are read into host memory first, because the live KV is elsewhere."""
        return self._device.type != "cpu"

    @property
    def lends(self) -> bool:
        """Whether long runs are lent to their blocks instead of copied."""
        return not self.is_staged and not self.has_states

    @property
    def is_queueing(self) -> bool:
        """Whether `load` returns before what is loaded has arrived."""
        return False

    @property
    def pinned_bytes(self) -> int | None:
        """Host memory that is locked for copies to a device; None: there is none for it."""
        return None

    @property
    def num_settled(self) -> int:
        """How many leading tokens are here, bit by bit, what a restore would bring back of them."""
        return self.num_tokens

    @torch.inference_mode()
    def reserve(self, num_tokens: int) -> None:
        """Make room for a path of this length at once, instead of growing on the way there."""
        for layer in self._growing.values():
            layer.reserve(num_tokens)

    @torch.inference_mode()
    def claim_buckets(self, start: int, stop: int) -> list[Buffers] | None:
        """The buffers of all layers, writable from `start` to `stop` and as long as the bucket of
        `stop`; None: they are no buckets, or nothing was ever in them."""
        layers = [layer for layer in self.layers if isinstance(layer, BucketLayer)]
        if len(layers) < len(self.layers) or not all(layer.is_initialized for layer in layers):
            return None
        for layer in layers:
            layer.claim(start, stop)
        return [layer.home for layer in layers]

    def scrub(self, start: int) -> None:
        """The model computed what is no numbers: nothing of it stays behind `start`."""
        for layer in self._growing.values():
            if isinstance(layer, BucketLayer):
                layer.scrub(start)

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens; in O(1), nothing is freed.

        States cannot go back: they are reset for 0 tokens, and torn otherwise."""
        if self.has_states and num_tokens < self.num_tokens:
            self.is_torn = num_tokens > 0
        if self.has_states and num_tokens == 0:
            reset_states(self.layers)
            self.is_torn = False
        self._staged.clear()  # of a read that failed: nothing of it may complete another one
        self._states.clear()
        self._num_counted = min(self._num_counted, num_tokens)
        for layer in self._growing.values():
            layer.set_length(min(layer.num_tokens, num_tokens))

    def note_computed(self, num_tokens: int) -> None:
        """The model has run up to here: needed where no layer counts tokens itself."""
        self._num_counted = num_tokens

    @torch.inference_mode()
    def copy_states(self) -> dict[str, torch.Tensor]:
        """The checkpoint at the last token, cloned into host memory; empty without states."""
        return copy_states(self.layers)

    @torch.inference_mode()
    def export(
        self, start: int, stop: int, states: dict[str, torch.Tensor] | None = None
    ) -> TensorBlock:
        """Tokens `start` to `stop` in host memory, with the checkpoint at `stop`, if any: a copy,
        or the buffers themselves, frozen up to `stop`."""
        if lent := self.lend(start, stop):
            return lent
        tensors = {
            name: run.to("cpu", copy=True).contiguous()
            for name, run in self._runs(start, stop).items()
        }
        return KVBlock(tensors, states or {})

    @torch.inference_mode()
    def reside(self, start: int, stop: int) -> ResidentBlock:
        """A copy of tokens `start` to `stop` where the model computes."""
        form = torch.contiguous_format
        return ResidentBlock(
            {name: run.clone(memory_format=form) for name, run in self._runs(start, stop).items()}
        )

    def _runs(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Tokens `start` to `stop` where they lie, `[num_kv_heads, num_tokens, head_dim]` each."""
        return {
            f"{kind}.{number}": layer.view(kind, start, stop)[0]
            for number, layer in self._growing.items()
            for kind in ("key", "value")
        }

    def _may_lend(self, start: int, stop: int) -> bool:
        """Whether lending would keep little more than the run itself in memory: few tokens before
        it that are not lent already, and little unused room behind it."""
        if not self.lends or not self._growing or stop - start < MIN_LENT_TOKENS:
            return False
        homes = [layer.home for layer in self._growing.values()]
        is_full = all(5 * self.num_tokens >= 4 * home.room for home in homes)
        return is_full and all(8 * (start - home.frozen_to) <= stop - start for home in homes)

    def lend(self, start: int, stop: int) -> TensorBlock | None:
        """Tokens `start` to `stop` where they lie, frozen up to `stop`; None: a copy is better."""
        if not self._may_lend(start, stop):
            return None
        block = LentBlock({}, start, stop, weakref.ref(self))
        block.homes.update(
            {number: layer.lend(block, stop) for number, layer in self._growing.items()}
        )
        return block

    def adopt(self, block: TensorBlock, num_tokens: int) -> bool:
        """Go on behind the first `num_tokens` of the path of a block, where they lie.

        False, and nothing is done: they do not lie in buffers that this live KV has lent.
        """
        if not isinstance(block, LentBlock) or block.lender() is not self:
            return False
        for number, layer in self._growing.items():
            layer.adopt(block.homes[number], num_tokens)
        return True

    @torch.inference_mode()
    def load(self, block: TensorBlock, at: int, start: int, stop: int) -> None:
        """Copy tokens `start` to `stop` of a block whose first token has position `at`."""
        for name, tensor in block.tensors.items():
            layer, kind = self._locate(name)
            layer.allocate(kind, tensor.shape[0], tensor.shape[2], self._dtype, self._device)
            layer.claim(start, stop)
            layer.view(kind, start, stop)[0].copy_(tensor[:, start - at : stop - at])

    @torch.inference_mode()
    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        """Memory for a tensor `[num_kv_heads, num_tokens, head_dim]` at `start`: a piece per head.

        On the CPU it is the live buffer itself. On other devices it is host memory that `written`
        copies over. Raises ValueError if the tensor does not belong to this model.
        """
        layer, kind = self._locate(name)
        if DTYPES.get(dtype) != self._dtype or len(shape) != 3:
            raise ValueError(f"{name} is {dtype}{list(shape)}, the model wants {self._dtype}")
        layer.allocate(kind, shape[0], shape[2], self._dtype, self._device)
        stop = start + shape[1]
        layer.claim(start, stop)
        target = layer.view(kind, start, stop)[0]
        if target.shape != shape:
            raise ValueError(f"{name} is {list(shape)}, the model wants {list(target.shape)}")
        if self.is_staged:
            is_gpu = self._device.type == "cuda"  # which copies from locked pages twice as fast
            target = torch.empty(shape, dtype=self._dtype, pin_memory=is_gpu)
            self._staged[name] = target
        return [memory_of(head) for head in target]

    @torch.inference_mode()
    def written(self, name: str, start: int) -> None:
        """The memory that `writable` gave is filled."""
        staged = self._staged.pop(name, None)
        if staged is not None:
            layer, kind = self._locate(name)
            layer.view(kind, start, start + staged.shape[1])[0].copy_(staged)

    def flush(self) -> None:
        """What was loaded is here already."""

    def brought(self) -> list[Brought]:
        """What a device has brought since the last time, where it does that beside the host."""
        return []

    def set_length(self, num_tokens: int) -> None:
        """All layers now hold `num_tokens` tokens: what was loaded or read in place counts."""
        self.is_torn = self.has_states
        self._num_counted = num_tokens
        for layer in self._growing.values():
            layer.set_length(num_tokens)

    @torch.inference_mode()
    def load_states(self, block: TensorBlock) -> None:
        """Put the checkpoint of a block back, behind the last token held. Raises ValueError."""
        load_states(self.layers, block.states)
        self.is_torn = False

    @torch.inference_mode()
    def writable_state(self, name: str, dtype: str, shape: tuple[int, ...]) -> memoryview:
        """Host memory for a state. Raises ValueError if the model has no such state."""
        state = state_like(self.layers, name)
        if state is None or tuple(state.shape) != shape or DTYPES.get(dtype) != state.dtype:
            raise ValueError(f"{name} is {dtype}{list(shape)}, not a state of this model")
        self._states[name] = state
        return memory_of(state)

    @torch.inference_mode()
    def states_written(self) -> None:
        """All memory that `writable_state` gave is filled: the checkpoint counts from now on.

        Raises ValueError if it is not complete."""
        states, self._states = self._states, {}
        load_states(self.layers, states)
        self.is_torn = False

    def _locate(self, name: str) -> tuple[GrowingLayer, str]:
        kind, _, index = name.partition(".")
        layer = self._growing.get(int(index)) if index.isdecimal() else None
        if layer is None or kind not in ("key", "value"):
            raise ValueError(f"{name} is not a tensor of this model")
        return layer, kind
