"""The experts of a mixture: where the rows of each lie, and what they compute, one by one.

A token goes through the few experts that a router chose for it, each a gated feed-forward network
(Shazeer et al., 2017). Products are the business of whoever calls; `mixing.py` has all of it as
one task for a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from chatcache.backends.local.packed.blocks import BlockMatrix


@dataclass(frozen=True, slots=True)
class Stack:
    """One matrix of each expert, in one matrix of blocks: that of expert `n` is `num_rows` rows
    from `first_row + n * distance` on. `bias` is float32 `[num_experts, num_rows]`."""

    matrix: BlockMatrix
    num_rows: int
    distance: int
    first_row: int = 0
    bias: torch.Tensor | None = None

    def of(self, expert: int) -> BlockMatrix:
        start = self.first_row + expert * self.distance
        rows = self.matrix.data[start : start + self.num_rows]
        return BlockMatrix(self.matrix.kind, rows, self.matrix.num_columns)


@dataclass(frozen=True, slots=True)
class Gating:
    """How what `gate` and `up` give is put together: SiLU of the one times the other; with a
    `limit`, as gpt-oss does it: both clamped, `alpha` in the sigmoid, one added to the other."""

    alpha: float = 1.0
    limit: float = 0.0

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if not self.limit:
            return torch.nn.functional.silu(gate) * up
        gate = gate.clamp(max=self.limit)
        up = up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + 1)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of a layer."""

    num_experts: int
    gate: Stack
    up: Stack
    down: Stack
    gating: Gating

    @property
    def stacks(self) -> tuple[Stack, Stack, Stack]:
        return self.gate, self.up, self.down


def add_each(
    mixture: Mixture,
    computing: Any,
    states: torch.Tensor,
    choices: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    only: list[int] | None = None,
) -> None:
    """Add to `output`, float32, what the experts give (only some of them), one after the other; its
    products are those of the module `computing`."""
    gate, up, down = mixture.stacks
    for expert, tokens, places in _chosen(choices, only):
        rows = states[tokens]
        gated = mixture.gating(
            _multiplied(computing, rows, gate, expert), _multiplied(computing, rows, up, expert)
        )
        found = _multiplied(computing, gated, down, expert)
        output.index_add_(0, tokens, found.float() * weights[tokens, places, None].float())


def _chosen(
    choices: torch.Tensor, only: list[int] | None
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For each expert that was chosen the tokens, and at which place each chose it."""
    for expert in torch.unique(choices).tolist() if only is None else only:
        tokens, places = torch.where(choices == expert)
        yield expert, tokens, places


def _multiplied(computing: Any, rows: torch.Tensor, stack: Stack, expert: int) -> torch.Tensor:
    output: torch.Tensor = computing.product(rows, stack.of(expert))
    return output if stack.bias is None else output + stack.bias[expert].to(output.dtype)
