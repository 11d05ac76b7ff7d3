"""Experts whose weights stay packed, against the same experts unpacked."""

from __future__ import annotations

import pytest
import torch

from chatcache.backends.local.packed import device_computing
from chatcache.backends.local.packed.computing import max_few
from chatcache.backends.local.packed.mixture import Gating, Mixture, Stack, add_each
from chatcache.backends.local.packed.modules import BlockExperts
from tests.unit.test_packed_kernels import random_blocks, reference

EXPERTS, HIDDEN, INNER, CHOSEN = 6, 256, 512, 3
CLAMPED = Gating(alpha=1.702, limit=0.5)


def experts_of(gate: str, up: str, down: str, gating: Gating, *, has_bias: bool) -> BlockExperts:
    """Small weights, so that what they give is about as large as what they get."""

    def stack(kind: str, num_rows: int, num_columns: int, seed: int) -> Stack:
        matrix = random_blocks(kind, EXPERTS * num_rows, num_columns, seed)
        bias = torch.randn(EXPERTS, num_rows) if has_bias else None
        return Stack(matrix, num_rows, num_rows, bias=bias)

    torch.manual_seed(3)
    parts = (
        stack(gate, INNER, HIDDEN, 0),
        stack(up, INNER, HIDDEN, 1),
        stack(down, HIDDEN, INNER, 2),
    )
    return BlockExperts(Mixture(EXPERTS, *parts, gating))


def routed(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(num_tokens)
    scores = torch.randn(num_tokens, EXPERTS)
    weights, choices = scores.softmax(1).topk(CHOSEN, dim=1)
    return 0.1 * torch.randn(num_tokens, HIDDEN), choices, weights


def expected(
    experts: BlockExperts, states: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """In float64, token by token."""
    gate, up, down = experts.mixture.stacks
    output = torch.zeros(states.shape, dtype=torch.float64)
    matrices = [[reference(s.of(n)).double() for n in range(EXPERTS)] for s in (gate, up, down)]

    def product(part: int, expert: int, values: torch.Tensor) -> torch.Tensor:
        bias = experts.mixture.stacks[part].bias
        return matrices[part][expert] @ values + (0.0 if bias is None else bias[expert].double())

    for token, values in enumerate(states.double()):
        for expert, weight in zip(choices[token].tolist(), weights[token].double(), strict=True):
            gated = experts.mixture.gating(product(0, expert, values), product(1, expert, values))
            output[token] += weight * product(2, expert, gated)
    return output


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Activations are rounded to 15 bits of the largest in their group."""
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("gate", "up", "down"),
    [
        ("Q4_K", "Q4_K", "Q6_K"),
        ("Q8_0", "Q8_0", "Q8_0"),
        ("MXFP4", "MXFP4", "MXFP4"),
        ("Q4_K", "Q5_0", "F16"),  # which want activations rounded otherwise, or not at all
        ("F32", "BF16", "Q4_1"),
    ],
)
@pytest.mark.parametrize("num_tokens", [1, 5, 200])
@pytest.mark.parametrize(("gating", "has_bias"), [(Gating(), False), (CLAMPED, True)])
def test_they_give_what_unpacked_ones_give(
    gate: str, up: str, down: str, num_tokens: int, gating: Gating, has_bias: bool
) -> None:
    experts = experts_of(gate, up, down, gating, has_bias=has_bias)
    inputs = routed(num_tokens)
    assert_close(experts(*inputs).double(), expected(experts, *inputs))


@pytest.mark.parametrize("kind", ["Q4_K", "F16"])
def test_a_token_gets_the_same_bits_alone_and_among_others(kind: str) -> None:
    experts = experts_of(kind, kind, "Q6_K", Gating(), has_bias=False)
    states, choices, weights = routed(max_few(experts.mixture.gate.matrix.kind))
    together = experts(states, choices, weights)
    for token in (0, 3, len(states) - 1):
        own = slice(token, token + 1)
        alone = experts(states[own], choices[own], weights[own])
        assert torch.equal(alone[0], together[token])


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    experts = experts_of("Q4_K", "Q4_K", "Q6_K", Gating(), has_bias=False)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(experts(*routed(40)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_gate_and_up_may_lie_in_one_matrix() -> None:
    apart = experts_of("Q8_0", "Q8_0", "Q8_0", Gating(), has_bias=False)
    gate, up, down = apart.mixture.stacks
    rows = [part.of(n).data for n in range(EXPERTS) for part in (gate, up)]
    both = type(gate.matrix)(gate.matrix.kind, torch.cat(rows), HIDDEN)
    stacks = (Stack(both, INNER, 2 * INNER, first) for first in (0, INNER))
    joined = BlockExperts(Mixture(EXPERTS, *stacks, down, Gating()))
    assert torch.equal(joined(*routed(7)), apart(*routed(7)))
    assert len(joined.matrices) == 2


def test_what_is_no_number_is_not_hidden() -> None:
    experts = experts_of("Q4_K", "Q4_K", "Q6_K", CLAMPED, has_bias=False)
    states, choices, weights = routed(3)
    states[1, 7] = float("nan")
    found = experts(states, choices, weights)
    assert found.isfinite().all(1).tolist() == [True, False, True]


def test_expert_by_expert_as_on_a_gpu_it_is_the_same() -> None:
    experts = experts_of("Q4_K", "Q4_K", "Q6_K", CLAMPED, has_bias=True)
    states, choices, weights = routed(9)
    output = torch.zeros(states.shape)
    add_each(experts.mixture, device_computing, states, choices, weights, output)
    assert_close(output, experts(states, choices, weights))


def test_no_tokens_give_nothing() -> None:
    experts = experts_of("Q8_0", "Q8_0", "Q8_0", Gating(), has_bias=False)
    states, choices, weights = (values[:0] for values in routed(2))
    assert experts(states, choices, weights).shape == (0, HIDDEN)
