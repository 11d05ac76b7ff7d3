"""Turns matrices of weights into GGUF's blocks.

Owns the bytes: which bits of a block hold what (for other bytes `QUANTIZER_VERSION` must change).
Scales and minima come from `fit`. A matrix is taken a few rows at a time, so that what is computed
on stays in the processor's caches, and memory does not grow with the matrix.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from chatcache.backends.local.packed import fit, two_levels
from chatcache.backends.local.packed.blocks import BlockKind, BlockMatrix

_CHUNK_WEIGHTS = 1 << 17
_LARGEST = 1e4  # scales are float16
_FOUR_BITS, _FIVE_BITS = 15, 31


def is_quantizable(weight: torch.Tensor) -> bool:
    """Whether all of a matrix are numbers that blocks can hold."""
    return bool(weight.abs().amax() < _LARGEST)  # not if one is NaN


Quantizer = Callable[[torch.Tensor, BlockKind], BlockMatrix]


@contextmanager
def quantizing() -> Iterator[Quantizer]:
    """What makes blocks of matrices meanwhile: as many threads as torch has, each on its own rows.

    torch's threads would meet after each small step, which a busy machine makes them wait for."""
    num_threads = torch.get_num_threads()
    are_alone = threading.Barrier(num_threads + 1)

    def work_alone() -> None:
        torch.set_num_threads(1)  # this thread's, and that of threads not yet known to torch
        are_alone.wait()

    with ThreadPoolExecutor(num_threads) as pool:
        begun = [pool.submit(work_alone) for _ in range(num_threads)]
        are_alone.wait()
        for future in begun:
            future.result()
        torch.set_num_threads(num_threads)
        yield lambda weight, kind: _quantized(weight, kind, pool)


def _quantized(weight: torch.Tensor, kind: BlockKind, pool: ThreadPoolExecutor) -> BlockMatrix:
    """Raises ValueError for a kind that is only read, or rows that are no whole blocks."""
    if kind.name not in _MAKERS:
        raise ValueError(f"weights are not made into {kind.name}")
    make = _MAKERS[kind.name]
    num_rows, num_columns = weight.shape
    data = torch.empty((num_rows, kind.row_bytes(num_columns)), dtype=torch.uint8)
    step = max(1, _CHUNK_WEIGHTS // num_columns)

    def fill(start: int) -> None:
        with torch.inference_mode():
            rows = weight[start : start + step].float()
            blocks = make(rows.reshape(-1, kind.num_weights))
            data[start : start + step] = blocks.reshape(len(rows), -1)

    for _ in pool.map(fill, range(0, num_rows, step)):
        pass
    return BlockMatrix(kind, data, num_columns)


# Each maker takes `[num_blocks, weights of a block]` and returns `[num_blocks, bytes of a block]`.


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    groups = blocks.T.contiguous()
    scale = groups.abs().amax(0) / 127
    codes = _codes_within(groups, scale, 127)
    # The scale that fits these codes best, where it loses nothing by clipping.
    fitted = (codes * groups).sum(0) / codes.square().sum(0).clamp_(min=1.0)
    halves = fitted.half()
    codes = _codes_within(groups, halves.float(), 127)
    return torch.cat([_bytes(halves), codes.T.to(torch.int8).contiguous().view(torch.uint8)], dim=1)


def _codes_within(groups: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    return fit.signed_codes_of(groups, scale, limit + 1).clamp_(-limit, limit)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    groups = blocks.T.contiguous()
    scale, minimum = _affine_halves(groups, _FOUR_BITS)
    codes = fit.codes_of(groups, scale.float(), minimum.float(), _FOUR_BITS).T.to(torch.uint8)
    return torch.cat([_bytes(scale), _bytes(minimum), _nibbles(codes, 16)], dim=1)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    groups = blocks.T.contiguous()
    scale, minimum = _affine_halves(groups, _FIVE_BITS)
    codes = fit.codes_of(groups, scale.float(), minimum.float(), _FIVE_BITS).T.to(torch.uint8)
    places = 1 << torch.arange(8, dtype=torch.uint8)
    high = ((codes >> 4).reshape(-1, 4, 8) * places).sum(-1, dtype=torch.uint8)
    low = _nibbles(codes & 15, 16)
    return torch.cat([_bytes(scale), _bytes(minimum), high, low], dim=1)


def _affine_halves(groups: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale, minimum = fit.affine(groups, fit.importance(groups), levels)
    return scale.half(), minimum.half()


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    num_blocks = len(blocks)
    groups = blocks.reshape(-1, 32).T.contiguous()
    fitted = two_levels.fit_super_blocks(groups, fit.importance(groups))
    codes = fitted.codes.T.to(torch.uint8).reshape(-1, 64)
    packed = _nibbles(codes, 32).reshape(num_blocks, 128)
    heads = [_bytes(fitted.super_scale), _bytes(fitted.super_depth)]
    sixes = _six_bits(fitted.scales.to(torch.uint8), fitted.depths.to(torch.uint8))
    return torch.cat([*heads, sixes, packed], dim=1)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    groups = blocks.reshape(-1, 16).T.contiguous()
    weights = fit.importance(groups)
    scale = fit.symmetric(groups, weights, 6, (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0))
    per_block = scale.reshape(-1, 16)
    largest = per_block.gather(1, per_block.abs().argmax(1, keepdim=True)).squeeze(1)
    halves = (largest / -128).half()
    unit = halves.float().repeat_interleave(16)
    inverse = torch.where(unit != 0, 1.0 / unit, 0.0)
    scales = (scale * inverse).round_().clamp_(-128, 127)
    codes = fit.signed_codes_of(groups, unit * scales, 32) + 32
    codes = codes.T.to(torch.uint8).reshape(-1, 2, 4, 32)
    first, second, third, fourth = codes.unbind(2)
    low = torch.cat([first & 15 | (third & 15) << 4, second & 15 | (fourth & 15) << 4], dim=-1)
    high = first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6
    eights = scales.reshape(-1, 16).to(torch.int8).view(torch.uint8)
    num_blocks = len(blocks)
    return torch.cat(
        [low.reshape(num_blocks, 128), high.reshape(num_blocks, 64), eights, _bytes(halves)], dim=1
    )


_MAKERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_1": _q5_1,
    "Q6_K": _q6_k,
    "Q8_0": _q8_0,
}


def _bytes(halves: torch.Tensor) -> torch.Tensor:
    """float16 `[num_blocks]` as bytes `[num_blocks, 2]`."""
    return halves.contiguous().view(torch.uint8).reshape(-1, 2)


def _nibbles(codes: torch.Tensor, distance: int) -> torch.Tensor:
    """Two codes of 4 bits in a byte: each with the one `distance` behind it, which is above."""
    pairs = codes.reshape(len(codes), -1, 2, distance)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(codes), -1)


def _six_bits(scales: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
    """8 scales and 8 depths of 6 bits, `[num_groups]` each, as 12 bytes per block: the first four
    of each whole; of the last four the low bits share a byte, the high bits lie above the first."""
    scales, depths = scales.reshape(-1, 8), depths.reshape(-1, 8)
    last = scales[:, 4:], depths[:, 4:]
    first = [scales[:, :4] | last[0] >> 4 << 6, depths[:, :4] | last[1] >> 4 << 6]
    return torch.cat([*first, last[0] & 15 | (last[1] & 15) << 4], dim=1)
