"""Linear layers in bfloat16 on a CPU, whose weights lie in the order that oneDNN's kernels read.

oneDNN reorders a weight at every call unless it is given one in that order. Packed once, a weight
is read at the speed of memory by a single row, and the results are the same bits. The operators are
internal to torch, so they are tried out first (`is_sound`). Where their order is known, it is told
by `pairs_at`, and a compiled step reads the same memory (`pairs.py`): no weight is held twice.
"""

from __future__ import annotations

import ctypes
import logging

import numpy as np
import torch

log = logging.getLogger(__name__)

STRIP = 64  # rows that lie together, in pairs of columns


class ReorderedLinear(torch.nn.Module):
    """Computes what the `nn.Linear` it replaces computed."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._reordered = _reorder(linear.weight)
        # The address of the weights in pairs of columns; None: they lie in another order.
        self.pairs_at = _pairs_at(self._reordered, linear.weight.detach())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return _multiply(states, self._reordered, self.bias)


def is_sound() -> bool:
    """Whether the operators are there, have another order for weights (not every processor has),
    and give the bits of the ordinary product."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 64), (96,))
    )
    try:
        reordered = _reorder(weight)
        if _lies_as_before(reordered, weight):
            return False
        for num_rows in (1, 5, 40):
            states = torch.randn((1, num_rows, 64), generator=generator).bfloat16()
            expected = torch.nn.functional.linear(states, weight, bias)
            if not torch.equal(_multiply(states, reordered, bias), expected):
                return False
    except (RuntimeError, AttributeError) as error:
        log.info("weights are not packed: %s", error)
        return False
    return True


def _reorder(weight: torch.Tensor) -> torch.Tensor:
    reordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
    return reordered


def _multiply(
    states: torch.Tensor, reordered: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        states, reordered, bias, "none", [], ""
    )
    return product


def _lies_as_before(reordered: torch.Tensor, weight: torch.Tensor) -> bool:
    try:
        num_bytes, address = _memory(reordered)
    except (RuntimeError, AttributeError):
        return False
    return ctypes.string_at(address, num_bytes) == weight.view(torch.uint8).numpy().tobytes()


def _memory(reordered: torch.Tensor) -> tuple[int, int]:
    """Bytes and address. Raises RuntimeError or AttributeError where they cannot be known."""
    return int(torch.ops.mkldnn._nbytes(reordered)), int(torch.ops.mkldnn.data_ptr(reordered))


def _pairs_at(reordered: torch.Tensor, weight: torch.Tensor) -> int | None:
    """Where the weights lie, if in strips of pairs: looked at in the first strip, one in the middle
    and the last. The order depends on the processor, and on the shape."""
    num_rows, num_columns = weight.shape
    num_strips = -(-num_rows // STRIP)
    num_bytes = 2 * STRIP * num_columns
    try:
        num_found, address = _memory(reordered)
    except (RuntimeError, AttributeError) as error:
        log.info("the order of packed weights cannot be seen: %s", error)
        return None
    if num_found != num_strips * num_bytes or num_columns % 2:
        return None
    for strip in {0, num_strips // 2, num_strips - 1}:
        rows = weight[STRIP * strip : STRIP * (strip + 1)].view(torch.int16)
        pairs = rows.view(len(rows), -1, 2).transpose(0, 1).numpy()
        found = ctypes.string_at(address + num_bytes * strip, num_bytes)
        lying = np.frombuffer(found, dtype=np.int16).reshape(-1, STRIP, 2)
        if not np.array_equal(lying[:, : len(rows)], pairs):
            return None
    return address
