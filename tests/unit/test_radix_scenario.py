"""The nine steps of figure 3 of RadixAttention (arXiv 2312.07104), with and without a disk tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatcache.token_ids import TokenIds
from tests.kvfakes import BYTES_PER_TOKEN, Bench, ids_of

SYSTEM = "You are a helpful assistant. "
A1 = (SYSTEM, "Hello! ", "Hi! ")
A2 = (*A1, "Solve this problem. ", "Here it is. ")
B1 = (SYSTEM, "What can you do? ", "I can. ")
B2 = (*B1, "Write a story. ", "Once upon. ")
SHOTS = "Question 1: yes. Question 2: no. "


def length(parts: tuple[str, ...]) -> int:
    return sum(map(len, parts))


@pytest.fixture(params=[True, False], ids=["disk", "ram-only"])
def tiers(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def bench(tmp_path: Path, tiers: bool) -> Iterator[Bench]:
    made = Bench(tmp_path, ram_budget=110 * BYTES_PER_TOKEN, is_spilling=tiers)
    yield made
    made.close()


def test_the_nine_steps(bench: Bench, tiers: bool) -> None:
    assert bench.turn(*A1) == 0
    assert bench.turn(*A2) == length(A1)
    assert bench.turn(*B1) == len(SYSTEM)
    assert bench.turn(*B2) == length(B1)
    a2_held = bench.cache.lookup(_packed(A2))
    assert (a2_held.num_tokens == length(A2)) == tiers
    assert a2_held.ram_tokens < length(A2)
    assert bench.turn(SHOTS, "Question 3? ", "yes. ") == 0
    assert bench.turn(SHOTS, "Question 4? ", "no. ") == len(SHOTS + "Question ")
    assert bench.turn(SHOTS, "Question 5? ", "both. ") == len(SHOTS + "Question ")
    reused = bench.turn(*A2, "More, please. ", "Yes. ")
    assert reused == length(A2) if tiers else len(SYSTEM) <= reused < length(A2)
    for answer in ("one. ", "two. ", "three. ", "four. "):
        whole = bench.cache.lookup(_packed((SHOTS, "Question 6? "))).num_tokens
        assert bench.turn(SHOTS, "Question 6? ", answer) == min(whole, len(SHOTS) + 11)
        assert bench.cache.use()[0].num_bytes <= 110 * BYTES_PER_TOKEN
    siblings = [
        bench.cache.lookup(_packed((SHOTS, "Question 6? ", answer))).num_tokens
        for answer in ("one. ", "two. ", "three. ", "four. ")
    ]
    if tiers:
        assert siblings == [len(SHOTS) + 12 + n for n in (5, 5, 7, 6)]
    else:
        assert siblings[-1] == len(SHOTS) + 12 + 6


def _packed(parts: tuple[str, ...]) -> TokenIds:
    return ids_of("".join(parts))
