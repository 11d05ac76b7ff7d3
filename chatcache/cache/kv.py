"""The live K and V of one path, given to transformers as its cache; and blocks cut out of it.

It knows tensors and positions, and nothing of token ids, files or budgets. K and V can be cut after
any token. States of recurrent and convolution layers, where a model has such, stand at one position
only: cutting leaves them behind ("torn") until a checkpoint is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from chatcache.cache.layers import GrowingLayer
from chatcache.cache.segfile import TensorSource
from chatcache.cache.states import (
    copy_states,
    has_states,
    layers_for,
    load_states,
    reset_states,
    state_like,
    states_of,
)

_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class KVBlock:
    """K and V of a run of tokens in host memory, by tensor name (`key.0`, `value.0`, ...).

    Each tensor is contiguous, `[num_kv_heads, num_tokens, head_dim]`, and never written again.
    `states` is the checkpoint behind the last token, for models that have one.
    """

    tensors: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.tensors.values(), *self.states.values()))

    @property
    def has_states(self) -> bool:
        return bool(self.states)

    def sources(self) -> list[TensorSource]:
        """The block as a segment file wants it; the buffers share the block's memory."""
        return [
            TensorSource(
                name, _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), (memory_of(tensor),)
            )
            for name, tensor in {**self.tensors, **self.states}.items()
        ]


class LiveKV(Cache):
    """The growing layers of the active path. All layers always hold the same tokens.

    With a `config`, the layers are those that transformers makes for it: states included.
    """

    def __init__(
        self,
        num_layers: int,
        dtype: torch.dtype,
        device: torch.device,
        config: PreTrainedConfig | None = None,
    ):
        plain = [GrowingLayer() for _ in range(num_layers)]
        layers: list[Any] = layers_for(config) if config is not None else [*plain]
        super().__init__(layers=layers)
        self._growing = {
            number: layer for number, layer in enumerate(layers) if isinstance(layer, GrowingLayer)
        }
        self._dtype = dtype
        self._device = device
        self._staged: dict[str, torch.Tensor] = {}
        self._states: dict[str, torch.Tensor] = {}
        self._num_counted = 0
        self.has_states = any(has_states(layer) for layer in layers)
        self.is_torn = False

    @property
    def num_tokens(self) -> int:
        if not self._growing:
            return self._num_counted
        return min(layer.num_tokens for layer in self._growing.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens held (the buffers may be up to half as large again)."""
        return sum(
            layer.view(kind).nbytes
            for layer in self._growing.values()
            if layer.is_initialized
            for kind in ("key", "value")
        )

    @property
    def is_staged(self) -> bool:
        """Whether files are read into host memory first, because the live KV is elsewhere."""
        return self._device.type != "cpu"

    @property
    def num_settled(self) -> int:
        """How many leading tokens are here, bit by bit, what a restore would bring back of them."""
        return self.num_tokens

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the states, whatever the number of tokens."""
        return sum(tensor.nbytes for tensor in states_of(self.layers).values())

    @torch.inference_mode()
    def reserve(self, num_tokens: int) -> None:
        """Make room for a path of this length at once, instead of growing on the way there."""
        for layer in self._growing.values():
            layer.reserve(num_tokens)

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens; in O(1), nothing is freed.

        States cannot go back: they are reset for 0 tokens, and torn otherwise."""
        if self.has_states and num_tokens < self.num_tokens:
            self.is_torn = num_tokens > 0
        if self.has_states and num_tokens == 0:
            reset_states(self.layers)
            self.is_torn = False
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
    ) -> KVBlock:
        """Copy tokens `start` to `stop` into host memory, with the checkpoint at `stop`, if any."""
        tensors = {}
        for index, layer in self._growing.items():
            for kind in ("key", "value"):
                view = layer.view(kind, start, stop)[0]
                tensors[f"{kind}.{index}"] = view.to("cpu", copy=True).contiguous()
        return KVBlock(tensors, states or {})

    @torch.inference_mode()
    def load(self, block: KVBlock, at: int, start: int, stop: int) -> None:
        """Copy tokens `start` to `stop` of a block whose first token has position `at`."""
        for name, tensor in block.tensors.items():
            layer, kind = self._locate(name)
            layer.allocate(kind, tensor.shape[0], tensor.shape[2], self._dtype, self._device)
            layer.reserve(stop)
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
        if _DTYPES.get(dtype) != self._dtype or len(shape) != 3:
            raise ValueError(f"{name} is {dtype}{list(shape)}, the model wants {self._dtype}")
        layer.allocate(kind, shape[0], shape[2], self._dtype, self._device)
        stop = start + shape[1]
        layer.reserve(stop)
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

    def set_length(self, num_tokens: int) -> None:
        """All layers now hold `num_tokens` tokens: what was loaded or read in place counts."""
        self.is_torn = self.has_states
        self._num_counted = num_tokens
        for layer in self._growing.values():
            layer.set_length(num_tokens)

    @torch.inference_mode()
    def load_states(self, block: KVBlock) -> None:
        """Put the checkpoint of a block back, behind the last token held. Raises ValueError."""
        load_states(self.layers, block.states)
        self.is_torn = False

    @torch.inference_mode()
    def writable_state(self, name: str, dtype: str, shape: tuple[int, ...]) -> memoryview:
        """Host memory for a state. Raises ValueError if the model has no such state."""
        state = state_like(self.layers, name)
        if state is None or tuple(state.shape) != shape or _DTYPES.get(dtype) != state.dtype:
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


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared."""
    flat = tensor.view(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]
