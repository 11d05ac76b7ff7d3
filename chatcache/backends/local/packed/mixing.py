"""The experts of a layer in the place of transformers' module, on a CPU.

Owns the job of `routing.py`: where the weights are, and what is computed into. An expert that more
tokens chose than blocks are quick for is unpacked and multiplied by torch, behind the others.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chatcache.backends.local.packed import computing, kernels
from chatcache.backends.local.packed.mixture import Mixture, add_each
from chatcache.backends.local.packed.routing import (
    AT_ONCE,
    EXPERTS,
    HEAD_BYTES,
    ROUTED,
    mix_task,
)
from chatcache.backends.local.packed.team import BARRIER_WORDS, team

_ALIGNED = 64


def mixed(
    mixture: Mixture, states: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What the experts give for `[num_tokens, hidden]`, float32 of that shape."""
    most = min(computing.max_few(stack.matrix.kind) for stack in mixture.stacks)
    kept, crowded = choices.long().contiguous(), _crowded(choices, most, mixture.num_experts)
    if crowded:
        kept = kept.masked_fill(torch.isin(kept, torch.tensor(crowded)), -1)
    values, shares = states.detach().float().contiguous(), weights.detach().float().contiguous()
    output = torch.zeros(states.shape)
    about = described(mixture)
    threads = team(torch.get_num_threads())
    room = room_for(sizes_of(about[0], len(kept), kept.shape[1], most, threads.num_threads))
    job = room.job.copy()
    words = job[0]
    words["experts"], words["num_tokens"], words["num_chosen"] = about.ctypes.data, *kept.shape
    words["states"], words["choices"] = values.data_ptr(), kept.data_ptr()
    words["shares"], words["out"] = shares.data_ptr(), output.data_ptr()
    threads.run(mix_task(), job.ctypes.data)
    if crowded:
        add_each(mixture, computing, states, choices, weights, output, crowded)
    return output


def _crowded(choices: torch.Tensor, most: int, num_experts: int) -> list[int]:
    """The experts that more tokens chose than blocks are quick for."""
    if len(choices) <= most:
        return []
    counts = torch.bincount(choices.flatten(), minlength=num_experts)
    return [int(expert) for expert in torch.where(counts > most)[0]]


def described(mixture: Mixture) -> np.ndarray:
    """One `EXPERTS`."""
    about = np.zeros(1, EXPERTS)
    words = about[0]
    words["num_experts"] = mixture.num_experts
    words["hidden"] = mixture.gate.matrix.num_columns
    words["inner"] = mixture.down.matrix.num_columns
    words["alpha"], words["limit"] = mixture.gating.alpha, mixture.gating.limit
    for name, stack in zip(("gate", "up", "down"), mixture.stacks, strict=True):
        kind, data = stack.matrix.kind, stack.matrix.data
        row_bytes = data.shape[1]
        words[name] = (
            kernels.product_functions(kind.ggml_type).ctypes.data,
            data.data_ptr() + stack.first_row * row_bytes,
            row_bytes,
            stack.distance * row_bytes,
            kernels.group_of(kind.ggml_type),
            0 if stack.bias is None else stack.bias.data_ptr(),
        )
    return about


@dataclass(frozen=True, slots=True)
class Sizes:
    """`num_tokens` is a power of two, `most` the tokens of an expert."""

    num_threads: int
    num_tokens: int
    num_chosen: int
    num_experts: int
    hidden: int
    inner: int
    most: int
    is_rounded_twice: bool  # `gate` and `up` want their activations rounded otherwise


def sizes_of(about: Any, num_tokens: int, num_chosen: int, most: int, num_threads: int) -> Sizes:
    """For some tokens or more, at most `most` of them for an expert."""
    return Sizes(
        num_threads,
        1 << max(0, num_tokens - 1).bit_length(),
        num_chosen,
        int(about["num_experts"]),
        int(about["hidden"]),
        int(about["inner"]),
        most,
        bool(about["gate"]["group"] != about["up"]["group"]),
    )


@dataclass(frozen=True, slots=True)
class Room:
    """What is computed into: all layers of a model use the same, one at a time."""

    job: np.ndarray
    memory: np.ndarray


@functools.lru_cache(maxsize=16)
def room_for(sizes: Sizes) -> Room:
    count, widest = sizes.num_tokens * sizes.num_chosen, max(sizes.hidden, sizes.inner)
    held, given = min(count, AT_ONCE), min(sizes.num_tokens, sizes.most)
    record = kernels.record_bytes(widest)
    heads = _aligned(HEAD_BYTES * given)
    own = heads + _aligned(kernels.scratch_bytes(widest))
    needed = {
        "order": 8 * count,
        "starts": 8 * (sizes.num_experts + 1),
        "gate_records": record * sizes.num_tokens,
        "up_records": record * sizes.num_tokens * sizes.is_rounded_twice,
        "down_records": record * held,
        "gated": 4 * sizes.inner * held,
        "ups": 4 * sizes.inner * held,
        "given": 4 * sizes.hidden * given,
        "barrier": 8 * BARRIER_WORDS,
        "heads": own * sizes.num_threads,
    }
    memory = np.zeros(sum(map(_aligned, needed.values())) + _ALIGNED, np.uint8)
    address, job = _aligned(memory.ctypes.data), np.zeros(1, ROUTED)
    words = job[0]
    for name, size in needed.items():
        words[name] = address
        address += _aligned(size)
    words["record_bytes"], words["own_bytes"] = record, own
    words["scratch"] = words["heads"] + heads
    if not sizes.is_rounded_twice:
        words["up_records"] = words["gate_records"]
    for name in ("gate_records", "up_records", "down_records"):
        for number in range(needed[name] // record):
            kernels.make_record(int(words[name]) + record * number, widest)
    return Room(job, memory)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
