"""Scales that are themselves few bits: 8 groups of a super-block, fitted to each other.

A weight of Q4_K is `super_scale * scale * code - super_depth * depth`: a code of 4 bits, a scale
and a depth (how far the lowest weight is below 0) of 6 bits per group, and two float16 per
super-block. Each round takes what fits best with the rest as it is: codes, then depths, then the
pair of float16.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from chatcache.backends.local.packed import fit

_GROUPS = 8
_LEVELS = 15
_LARGEST_SCALE = 63
_ROUNDS = 3
_SINGULAR = 1e-6


@dataclass(frozen=True, slots=True)
class SuperBlocks:
    """`super_*` are float16 `[num_blocks]`; `scales` and `depths` whole numbers `[num_groups]`;
    `codes` are `[group, num_groups]`; `error` `[num_blocks]` is told up to what is common."""

    super_scale: torch.Tensor
    super_depth: torch.Tensor
    scales: torch.Tensor
    depths: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Sums:
    """Weighted sums over each group: of codes, of their squares, and of codes times weights."""

    codes: torch.Tensor
    squares: torch.Tensor
    products: torch.Tensor


def fit_super_blocks(groups: torch.Tensor, importance: torch.Tensor) -> SuperBlocks:
    """Of groups of 32 `[32, num_groups]`, 8 to a super-block, with errors so important."""
    scale, minimum = fit.affine(groups, importance, _LEVELS, is_minimum_negative=True)
    fitting = _Fitting(groups, importance)
    wishes = scale.abs(), -minimum
    pair = tuple(_per_block(wish).amax(1) / _LARGEST_SCALE for wish in wishes)
    best: SuperBlocks | None = None
    for _ in range(_ROUNDS):
        found, sums = fitting.rounded(*wishes, pair[0].half(), pair[1].half())
        best = found if best is None else _better(best, found)
        pair = fitting.refitted(found, sums)
        wishes = _spread(pair[0]) * found.scales, _spread(pair[1]) * found.depths
    assert best is not None
    return best


class _Fitting:
    def __init__(self, groups: torch.Tensor, importance: torch.Tensor) -> None:
        self._groups, self._importance = groups, importance
        self._weighted = importance * groups
        self._total, self._total_weighted = importance.sum(0), self._weighted.sum(0)
        self._scratch = torch.empty_like(groups)

    def rounded(
        self,
        scale: torch.Tensor,
        depth: torch.Tensor,
        super_scale: torch.Tensor,
        super_depth: torch.Tensor,
    ) -> tuple[SuperBlocks, _Sums]:
        """The nearest that can be written of wanted scales and depths `[num_groups]`."""
        scales, depths = _nearest(scale, super_scale), _nearest(depth, super_depth)
        step = _spread(super_scale) * scales
        _, sums = self._coded(step, _spread(super_depth) * depths)
        # The scale is rounded by now: with these codes, another depth may fit it better.
        depth = (step * sums.codes - self._total_weighted) / self._total
        depths = _nearest(depth, super_depth)
        drop = _spread(super_depth) * depths
        codes, sums = self._coded(step, drop)
        error = (
            step * (step * sums.squares - 2 * sums.products)
            + drop * (drop * self._total + 2 * self._total_weighted)
            - 2 * step * drop * sums.codes
        )
        by_block = _per_block(error).sum(1)
        return SuperBlocks(super_scale, super_depth, scales, depths, codes, by_block), sums

    def refitted(self, found: SuperBlocks, sums: _Sums) -> tuple[torch.Tensor, torch.Tensor]:
        """The pair of super-scale and super-depth that fits all else best: least squares."""
        scales, depths = found.scales, found.depths
        aa = _per_block(scales * scales * sums.squares).sum(1)
        ab = _per_block(scales * depths * sums.codes).sum(1)
        bb = _per_block(depths * depths * self._total).sum(1)
        ax = _per_block(scales * sums.products).sum(1)
        bx = _per_block(depths * self._total_weighted).sum(1)
        determinant = aa * bb - ab * ab
        is_solvable = determinant > _SINGULAR * aa * bb
        divisor = torch.where(is_solvable, determinant, 1.0)
        scale = torch.where(is_solvable, (ax * bb - bx * ab) / divisor, found.super_scale.float())
        depth = torch.where(is_solvable, (ax * ab - bx * aa) / divisor, found.super_depth.float())
        has_no_depth = (bb == 0) & (aa > 0)
        scale = torch.where(has_no_depth, ax / torch.where(aa > 0, aa, 1.0), scale)
        return scale.clamp_(min=0.0), depth.clamp_(min=0.0)

    def _coded(self, step: torch.Tensor, drop: torch.Tensor) -> tuple[torch.Tensor, _Sums]:
        codes = fit.codes_of(self._groups, step, -drop, _LEVELS)
        products = torch.mul(codes, self._weighted, out=self._scratch).sum(0)
        weighted = torch.mul(codes, self._importance, out=self._scratch)
        return codes, _Sums(weighted.sum(0), weighted.mul_(codes).sum(0), products)


def _better(before: SuperBlocks, after: SuperBlocks) -> SuperBlocks:
    """Of each super-block, the one with less error."""
    is_better = after.error < before.error
    of_groups = is_better.repeat_interleave(_GROUPS)
    chosen = {}
    for field in fields(SuperBlocks):
        old, new = getattr(before, field.name), getattr(after, field.name)
        mask = is_better if old.shape[-1] == len(is_better) else of_groups
        chosen[field.name] = torch.where(mask, new, old)
    return SuperBlocks(**chosen)


def _per_block(of_groups: torch.Tensor) -> torch.Tensor:
    return of_groups.reshape(-1, _GROUPS)


def _spread(of_blocks: torch.Tensor) -> torch.Tensor:
    """For each group what its super-block has."""
    return of_blocks.float().repeat_interleave(_GROUPS)


def _nearest(values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    units = _spread(unit)
    inverse = torch.where(units > 0, 1.0 / units, 0.0)
    return (values * inverse).round_().clamp_(0, _LARGEST_SCALE)
