"""Scales and minima for groups of weights: what loses least when each weight becomes few bits.

Owns the search, and nothing of how the result is laid out in bytes. Groups are columns: a tensor
`[group, num_groups]`, so that a sum over a group adds whole rows. Errors are squared, and weighted
by the magnitude of a weight, because a large weight moves more of what it is multiplied with.
"""

from __future__ import annotations

import torch

# How far the range of a group is stretched (below its extremes: they are clipped) before its
# scale is fitted, in steps of the code.
_STRETCHES = (-2.0, -1.2, -0.6, -0.2, 0.2, 0.6, 1.2)
_TINY = 1e-30


def importance(groups: torch.Tensor) -> torch.Tensor:
    """Weights of the squared errors `[group, num_groups]`: magnitude beside the group's own."""
    return groups.abs().add_(groups.square().mean(0).sqrt_()).add_(_TINY)


def affine(
    groups: torch.Tensor,
    weights: torch.Tensor,
    levels: int,
    *,
    is_minimum_negative: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(scale, minimum)`, each `[num_groups]`, for `scale * code + minimum` with codes 0 to
    `levels`. `is_minimum_negative`: it may not be above 0."""
    low, high = groups.amin(0), groups.amax(0)
    if is_minimum_negative:
        low = low.clamp(max=0.0)
    span = (high - low).clamp_(min=0.0)
    fit = _AffineFit(groups, weights, levels, is_minimum_negative=is_minimum_negative)
    fit.offer(span / levels, low)
    for stretch in _STRETCHES:
        step = span / (levels + stretch)
        fit.refit(step, low)
    for _ in range(2):
        fit.refit(fit.scale, fit.minimum)
    return fit.scale, fit.minimum


class _AffineFit:
    """The best scale and minimum so far of each group."""

    def __init__(
        self, groups: torch.Tensor, weights: torch.Tensor, levels: int, *, is_minimum_negative: bool
    ):
        self._groups, self._weights, self._levels = groups, weights, levels
        self._is_minimum_negative = is_minimum_negative
        self._weighted = weights * groups
        self._w = weights.sum(0)
        self._wx = self._weighted.sum(0)
        self._codes = torch.empty_like(groups)
        self._scratch = torch.empty_like(groups)
        self._error = torch.full_like(self._w, torch.inf)
        self.scale = torch.zeros_like(self._w)
        self.minimum = torch.zeros_like(self._w)

    def offer(self, scale: torch.Tensor, minimum: torch.Tensor) -> None:
        """Keep these where they are better. An error is told up to what all fits have in common."""
        wq, wqq, wqx = self._sums(scale, minimum)
        self._keep(scale, minimum, wq, wqq, wqx)

    def refit(self, scale: torch.Tensor, minimum: torch.Tensor) -> None:
        """Keep what fits best to the codes that these give, where it is better."""
        wq, wqq, wqx = self._sums(scale, minimum)
        determinant = self._w * wqq - wq * wq
        is_solvable = determinant > 1e-6 * self._w * wqq
        divisor = torch.where(is_solvable, determinant, 1.0)
        fitted = torch.where(is_solvable, (self._w * wqx - self._wx * wq) / divisor, scale)
        shift = torch.where(is_solvable, (wqq * self._wx - wq * wqx) / divisor, minimum)
        if self._is_minimum_negative:
            is_above = shift > 0
            through_zero = wqx / wqq.clamp(min=_TINY)
            fitted, shift = torch.where(is_above, through_zero, fitted), shift.clamp(max=0.0)
        self._keep(fitted, shift, wq, wqq, wqx)

    def _sums(
        self, scale: torch.Tensor, minimum: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        codes = codes_of(self._groups, scale, minimum, self._levels, out=self._codes)
        wqx = torch.mul(codes, self._weighted, out=self._scratch).sum(0)
        weighted_codes = torch.mul(codes, self._weights, out=self._scratch)
        wq = weighted_codes.sum(0)
        wqq = weighted_codes.mul_(codes).sum(0)
        return wq, wqq, wqx

    def _keep(
        self,
        scale: torch.Tensor,
        minimum: torch.Tensor,
        wq: torch.Tensor,
        wqq: torch.Tensor,
        wqx: torch.Tensor,
    ) -> None:
        error = (
            scale * (scale * wqq - 2 * wqx)
            + minimum * (minimum * self._w - 2 * self._wx)
            + 2 * scale * minimum * wq
        )
        is_better = error < self._error
        self._error = torch.where(is_better, error, self._error)
        self.scale = torch.where(is_better, scale, self.scale)
        self.minimum = torch.where(is_better, minimum, self.minimum)


def codes_of(
    groups: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor,
    levels: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The nearest codes, 0 to `levels`, as floats."""
    inverse = torch.where(scale.abs() > _TINY, 1.0 / scale, 0.0)
    codes = torch.mul(groups, inverse, out=out)
    return codes.sub_(minimum * inverse).round_().clamp_(0, levels)


def symmetric(
    groups: torch.Tensor, weights: torch.Tensor, bits: int, stretches: tuple[float, ...]
) -> torch.Tensor:
    """Scales `[num_groups]`, of either sign, for `scale * code` with codes of `bits` with a sign.

    The code on the negative side reaches one further, so the largest weight gets that side."""
    half = 1 << (bits - 1)
    position = groups.abs().argmax(0, keepdim=True)
    extreme = groups.gather(0, position).squeeze(0)
    best = extreme / -half
    best_error = torch.full_like(extreme, torch.inf)
    codes, scratch = torch.empty_like(groups), torch.empty_like(groups)
    weighted = weights * groups
    for stretch in stretches:
        codes = signed_codes_of(groups, extreme / -(half + stretch), half, out=codes)
        wqx = torch.mul(codes, weighted, out=scratch).sum(0)
        wqq = torch.mul(codes, weights, out=scratch).mul_(codes).sum(0)
        scale = wqx / wqq.clamp(min=_TINY)
        error = -wqx * scale
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best = torch.where(is_better, scale, best)
    return best


def signed_codes_of(
    groups: torch.Tensor, scale: torch.Tensor, half: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The nearest codes, -half to half - 1, as floats."""
    inverse = torch.where(scale.abs() > _TINY, 1.0 / scale, 0.0)
    return torch.mul(groups, inverse, out=out).round_().clamp_(-half, half - 1)
