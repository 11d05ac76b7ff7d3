"""Products with packed matrices, and their weights unpacked.

A few rows of activations are multiplied with the blocks as they lie; for more, a part of the matrix
at a time is unpacked into one buffer that all layers share, and the ordinary product reads it while
it is in the cache. So no weight is ever held in two forms.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch.nn.functional import linear

from chatcache.backends.local.packed import kernels
from chatcache.backends.local.packed.blocks import KINDS, BlockKind, BlockMatrix
from chatcache.backends.local.packed.intrinsics import FLOAT_KINDS
from chatcache.backends.local.packed.team import team

# Rows of activations up to which blocks are quicker than unpacked weights: measured with 1,024 to
# 3,072 columns. Where rows are multiplied one by one, as with float weights, it is fewer.
_FEW, _FEW_ONE_BY_ONE = 64, 8
_SLAB_WEIGHTS = 1 << 22  # unpacked at a time
_TARGETS = {torch.float32: KINDS["F32"].ggml_type, torch.bfloat16: KINDS["BF16"].ggml_type}


def product(rows: torch.Tensor, matrix: BlockMatrix) -> torch.Tensor:
    """`[num, num_columns]` times the transposed matrix: `[num, num_rows]`."""
    if len(rows) <= max_few(matrix.kind):
        return multiplied(rows, matrix)
    return multiplied_unpacked(rows, matrix)


def max_few(kind: BlockKind) -> int:
    """How many rows of activations are multiplied with the blocks as they lie."""
    return _FEW_ONE_BY_ONE if kind.ggml_type in FLOAT_KINDS else _FEW


def multiplied(rows: torch.Tensor, matrix: BlockMatrix) -> torch.Tensor:
    """`[num, num_columns]` times the transposed matrix, from its blocks: `[num, num_rows]`."""
    x = rows.detach().float().contiguous()
    output = torch.empty((len(x), matrix.num_rows))
    threads = team(torch.get_num_threads())
    num_threads = threads.num_threads
    memory, records, record_bytes = _records(num_threads * len(x), matrix.num_columns)
    scratch, decoded, scratch_bytes = _scratch(num_threads, matrix.num_columns)
    job = np.array(
        [
            kernels.product_functions(matrix.kind.ggml_type).ctypes.data,
            matrix.data.data_ptr(),
            matrix.data.shape[1],
            matrix.num_rows,
            matrix.num_columns,
            kernels.group_of(matrix.kind.ggml_type),
            x.data_ptr(),
            len(x),
            output.data_ptr(),
            records,
            record_bytes,
            decoded,
            scratch_bytes,
        ],
        dtype=np.int64,
    )
    threads.run(kernels.product_task(), job.ctypes.data)
    del memory, scratch  # which were in use up to here
    return output.to(rows.dtype)


def multiplied_unpacked(rows: torch.Tensor, matrix: BlockMatrix) -> torch.Tensor:
    """The same, by way of unpacked weights in the dtype of the rows."""
    output = rows.new_empty((len(rows), matrix.num_rows))
    size = max(1, _SLAB_WEIGHTS // matrix.num_columns)
    buffer = _slab(rows.dtype, min(size, matrix.num_rows) * matrix.num_columns)
    for start in range(0, matrix.num_rows, size):
        part = BlockMatrix(matrix.kind, matrix.data[start : start + size], matrix.num_columns)
        weights = buffer[: part.num_rows * part.num_columns].view(-1, part.num_columns)
        unpack_into(weights, part)
        output[:, start : start + size] = linear(rows, weights)
    return output


def unpacked(matrix: BlockMatrix, dtype: torch.dtype) -> torch.Tensor:
    """All weights of a matrix, `[num_rows, num_columns]`."""
    weights = torch.empty((matrix.num_rows, matrix.num_columns), dtype=dtype)
    unpack_into(weights, matrix)
    return weights


def unpack_into(weights: torch.Tensor, matrix: BlockMatrix) -> None:
    """Write the weights of a matrix into a contiguous tensor of its shape."""
    if matrix.kind.ggml_type in FLOAT_KINDS:
        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        weights.copy_(matrix.data.view(dtypes[matrix.kind.name]))
        return
    target = _TARGETS.get(weights.dtype)
    if target is None:
        wide = torch.empty(weights.shape)
        unpack_into(wide, matrix)
        weights.copy_(wide)
        return
    job = np.array(
        [
            kernels.unpacked_rows(matrix.kind.ggml_type, target),
            matrix.data.data_ptr(),
            matrix.data.shape[1],
            matrix.num_rows,
            matrix.num_columns,
            weights.data_ptr(),
            weights.shape[1] * weights.itemsize,
        ],
        dtype=np.int64,
    )
    team(torch.get_num_threads()).run(kernels.unpack_task(), job.ctypes.data)


_SLABS: dict[torch.dtype, torch.Tensor] = {}


def _slab(dtype: torch.dtype, num_weights: int) -> torch.Tensor:
    slab = _SLABS.get(dtype)
    if slab is None or slab.numel() < num_weights:
        with torch.inference_mode(False):  # one that was made within could not be used without
            slab = _SLABS[dtype] = torch.empty(num_weights, dtype=dtype)
    return slab


@functools.lru_cache(maxsize=256)
def _records(num_records: int, num_columns: int) -> tuple[np.ndarray, int, int]:
    """Room for the rounded activations of each thread: the memory, the address of the first record
    and the bytes from one to the next. One product at a time uses it."""
    size = kernels.record_bytes(num_columns)
    memory = np.zeros(num_records * size + 64, dtype=np.uint8)
    address = -(-memory.ctypes.data // 64) * 64
    for number in range(num_records):
        kernels.make_record(address + number * size, num_columns)
    return memory, address, size


@functools.lru_cache(maxsize=16)
def _scratch(num_threads: int, num_columns: int) -> tuple[np.ndarray, int, int]:
    """Room for the decoded rows of each thread: the memory, its address, bytes for each."""
    size = kernels.scratch_bytes(num_columns)
    memory = np.zeros(num_threads * size + 64, dtype=np.uint8)
    return memory, -(-memory.ctypes.data // 64) * 64, size
