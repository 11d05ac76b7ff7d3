"""One layer of K and V that grows in place, given to transformers as a cache layer.

A layer owns one buffer per tensor, `[1, num_kv_heads, room, head_dim]`, writes new tokens in place
and hands out views, so a step copies nothing that is there already (the idea of mlx-lm's KVCache).
Truncating moves an offset. What is lent to a block is frozen: a layer that has to write there goes
on in other buffers (copy on write), and the block keeps the old ones. Whatever writes a buffer runs
under `torch.inference_mode`: a buffer made inside it cannot be written outside.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.cache_utils import CacheLayerMixin

_GROWTH_TOKENS = 256
_GROWTH_SHARE = 32  # so much more at a time: little memory lies idle, and copies stay rare
_MAX_PASSED = 4  # so many times shorter buffers are freed while a long set is kept
_SHRINK = 2  # buffers so many times as long as needed are too large


class Borrower(Protocol):
    """Who reads from buffers, and is told when what it reads lies in others."""

    def move(self, number: int, home: Buffers) -> None:
        """The buffers of layer `number` are others now, the same as far as they are frozen."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Buffers:
    """Memory for K and V of one layer: by kind ("key", "value"), `[1, num_kv_heads, room,
    head_dim]`. Positions before `frozen_to` are lent, and are never written again."""

    room: int
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    frozen_to: int = 0
    borrowers: weakref.WeakSet[Borrower] = field(default_factory=weakref.WeakSet)


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """K and V of one layer for tokens 0 to `num_tokens`, in one growing buffer each.

    `number` is its place in the model.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, number: int = 0) -> None:
        # Not the constructor of the class above, which sets the tensors: they are views of buffers.
        self.number = number
        self.num_tokens = 0
        self.home = Buffers(self._room(1))
        self._spare: Buffers | None = None
        self._num_passed = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        for kind, states in (("key", key_states), ("value", value_states)):
            self.allocate(kind, states.shape[1], states.shape[3], states.dtype, states.device)

    def allocate(
        self, kind: str, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make an empty buffer for "key" or "value", unless there is one."""
        if kind not in self.home.tensors:
            shape = (1, num_heads, self.home.room, head_dim)
            like = torch.empty(0, dtype=dtype, device=device)
            self.home.tensors[kind] = self._memory(shape, like)

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all, and for some more to come; buffers that are much too
        large are left, as long as nothing is in them."""
        if self.num_tokens == 0 and self.home.room > _SHRINK * room_for(num_tokens):
            self._move(room_for(num_tokens))
        self.claim(self.num_tokens, num_tokens)

    def claim(self, start: int, stop: int) -> None:
        """Make positions `start` to `stop` writable: elsewhere, if they are lent or there is no
        room for them. The tokens that count come along."""
        is_lent = start < self.home.frozen_to
        if is_lent or stop > self.home.room:
            is_same = not is_lent and self.num_tokens >= self.home.frozen_to
            self._move(self._room(max(stop, self.num_tokens)), is_same=is_same)

    def _move(self, room: int, *, is_same: bool = False) -> None:
        """Go on in other buffers. With `is_same` they hold all that is lent as well: borrowers are
        moved there, and the old buffers are freed."""
        old, kept = self.home, self.num_tokens
        self.home = self._taken(room)
        for kind, tensor in old.tensors.items():
            self.home.tensors[kind][:, :, :kept] = tensor[:, :, :kept]
        if is_same and old.frozen_to:
            self.home.frozen_to = old.frozen_to
            for borrower in list(old.borrowers):
                self.home.borrowers.add(borrower)
                borrower.move(self.number, self.home)
        elif room < old.room:
            self._leave(old)

    def _taken(self, room: int) -> Buffers:
        """Buffers like those at home: the spare ones, if they are of a fitting length, or new."""
        if (spare := self._spare) is not None:
            is_like = spare.tensors.keys() == self.home.tensors.keys()
            if room > spare.room or not is_like:
                self._spare = None
            elif spare.room <= _SHRINK * room:
                self._spare = None
                return spare
        made = {}  # both or none: memory may run out in between
        for kind, tensor in self.home.tensors.items():
            made[kind] = self._memory((1, tensor.shape[1], room, tensor.shape[3]), tensor)
        return Buffers(room, made)

    def _room(self, num_tokens: int) -> int:
        """How long buffers for so many tokens are made."""
        return room_for(num_tokens)

    def _memory(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(shape)

    def _leave(self, home: Buffers) -> None:
        """Keep one set of buffers for later, unless it is lent: memory that was used before is
        written several times as quickly. A long set outlasts `_MAX_PASSED` shorter ones."""
        if home.frozen_to:
            return
        self._num_passed += 1
        is_short = self._spare is not None and home.room < self._spare.room
        if not is_short or self._num_passed > _MAX_PASSED:
            self._spare, self._num_passed = home, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[1, num_kv_heads, num_new, head_dim]`; returns views of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.num_tokens + key_states.shape[2]
        self.claim(self.num_tokens, stop)
        self.home.tensors["key"][:, :, self.num_tokens : stop] = key_states
        self.home.tensors["value"][:, :, self.num_tokens : stop] = value_states
        self.set_length(stop)
        return self.view("key"), self.view("value")

    def set_length(self, num_tokens: int) -> None:
        """Say how many tokens count. The buffer must hold them already."""
        self.num_tokens = num_tokens

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        return len(self.home.tensors) == 2

    @property
    def keys(self) -> torch.Tensor | None:  # type: ignore[override]
        return self.view("key") if self.is_initialized else None

    @property
    def values(self) -> torch.Tensor | None:  # type: ignore[override]
        return self.view("value") if self.is_initialized else None

    def lend(self, borrower: Borrower, stop: int) -> Buffers:
        """Freeze all positions before `stop` for a borrower; returns the buffers."""
        self.home.frozen_to = max(self.home.frozen_to, stop)
        self.home.borrowers.add(borrower)
        return self.home

    def adopt(self, home: Buffers, num_tokens: int) -> None:
        """Go on in buffers that were lent, behind their first `num_tokens`, which are frozen."""
        if self.home is not home:
            self._leave(self.home)
        self.home = home
        self.set_length(num_tokens)

    def view(self, kind: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """`[1, num_kv_heads, stop - start, head_dim]` of the buffer itself."""
        return self.home.tensors[kind][:, :, start : self.num_tokens if stop is None else stop]

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1


def room_for(num_tokens: int) -> int:
    """How long buffers for so many tokens are made."""
    wanted = num_tokens + num_tokens // _GROWTH_SHARE
    return -(-wanted // _GROWTH_TOKENS) * _GROWTH_TOKENS
