"""Products with split matrices on a card: which kernel, in what sizes.

Sizes follow from the shape of a matrix alone: nothing is measured or tuned, so that the same matrix
is always computed in the same way. Importing this imports Triton.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from chatcache.backends.local.packed import device_kernels
from chatcache.backends.local.packed.blocks import BlockKind
from chatcache.backends.local.packed.device_layout import LAYOUTS, SplitMatrix

_GROUP = 32  # columns that a thread takes at a time
_TOKENS = 8  # rows of activations in a program where there are several
_MOST_WASTE = 1.15  # threads without work beside those with some
_UNPACKED_ROWS, _UNPACKED_COLUMNS = 4, 1024  # in a program


def multiplied(rows: torch.Tensor, matrix: SplitMatrix) -> torch.Tensor:
    """A few rows `[num, num_columns]` times the transposed matrix: `[num, num_rows]`."""
    rows = rows.contiguous()
    output = rows.new_empty((len(rows), matrix.num_rows))
    tokens = 1 if len(rows) == 1 else _TOKENS
    shared = rows_in_program(matrix.kind, tokens)
    grid = (_parts(matrix.num_rows, shared), _parts(len(rows), tokens))
    groups = groups_of(matrix.num_columns)
    _launch(
        device_kernels.multiply,
        grid,
        groups // 32,
        (rows, *_memory(matrix), output, len(rows), matrix.num_rows, matrix.num_blocks),
        {"tokens": tokens, "rows": shared, "groups": groups, **constants(matrix.kind)},
    )
    return output


def unpacked(matrix: SplitMatrix, dtype: torch.dtype) -> torch.Tensor:
    """All weights of a matrix, `[num_rows, num_columns]`."""
    shape = matrix.num_rows, matrix.num_columns
    output = torch.empty(shape, dtype=dtype, device=matrix.low.device)
    grid = (_parts(matrix.num_rows, _UNPACKED_ROWS), _parts(shape[1], _UNPACKED_COLUMNS))
    known = constants(matrix.kind)
    _launch(
        device_kernels.unpack,
        grid,
        4,
        (*_memory(matrix), output, matrix.num_rows, matrix.num_blocks),
        {"rows": _UNPACKED_ROWS, "spans": _UNPACKED_COLUMNS // int(known["span"]), **known},
    )
    return output


def rows_in_program(kind: BlockKind, tokens: int) -> int:
    """How many rows of a matrix share what a program reads of the activations: as many as there
    are registers for."""
    return 2 if tokens > 1 and LAYOUTS[kind.name].high.bits else 4


@functools.cache
def groups_of(num_columns: int) -> int:
    """How many groups of columns a program takes at a time: as many as leave few threads idle."""
    num_groups = _parts(num_columns, _GROUP)
    taken = {size: size * _parts(num_groups, size) for size in (128, 64, 32)}
    return next((size for size, total in taken.items() if total <= _MOST_WASTE * num_groups), 32)


@functools.cache
def constants(kind: BlockKind) -> dict[str, Any]:
    """What of a kind is compiled into a kernel."""
    layout = LAYOUTS[kind.name]
    return {
        "block_size": kind.num_weights,
        "scaling": layout.scaling,
        "span": layout.span,
        "low_bits": layout.low.bits,
        "high_bits": layout.high.bits,
        "middle": layout.middle,
        "has_book": bool(layout.book),
    }


def _memory(matrix: SplitMatrix) -> tuple[torch.Tensor, ...]:
    book = _book(matrix.kind, matrix.low.device)
    return matrix.low, matrix.high, matrix.scales, matrix.units, book


@functools.cache
def _book(kind: BlockKind, device: torch.device) -> torch.Tensor:
    """What codes mean; it stays where it is, because graphs read it there."""
    return torch.tensor(LAYOUTS[kind.name].book or (0,), dtype=torch.float32, device=device)


def _launch(
    kernel: Any,
    grid: tuple[int, int],
    num_warps: int,
    arguments: tuple[Any, ...],
    constant: dict[str, Any],
) -> None:
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        # Fused, also where a later Triton would not: what a token gets must not depend on that.
        kernel[grid](*arguments, **constant, num_warps=num_warps, enable_fp_fusion=True)


def _parts(whole: int, size: int) -> int:
    return -(-whole // size)
