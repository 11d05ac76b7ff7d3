"""What is stored of an answer's figures is what was given, whatever they are."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatcache.backends.usage import (
    CacheReport,
    Figures,
    FinishReason,
    Outcome,
    Reason,
    Tier,
    TierRun,
    Timings,
    TurnPrice,
    Usage,
)
from chatcache.chat.figures import decode, encode

COUNTS = st.integers(0, 1 << 40)
TIMES = st.none() | st.integers(0, 10**9).map(lambda thousandths: thousandths / 1000)
RUNS = st.builds(TierRun, COUNTS, st.sampled_from(get_args(Tier)))
MONEY = st.none() | st.floats(0, 1e6)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS) | st.builds(
    Usage,
    st.none() | COUNTS,
    st.none() | COUNTS,
    st.none(),
    st.none(),
    server_cached_tokens=st.none() | COUNTS,
)
FIGURES = st.builds(
    Figures,
    usage=USAGES,
    timings=st.builds(Timings, TIMES, TIMES, TIMES, TIMES, TIMES, TIMES),
    cache=st.builds(
        CacheReport,
        outcome=st.sampled_from(get_args(Outcome)),
        reason=st.sampled_from(get_args(Reason)),
        diverged_at=st.none() | COUNTS,
        detail=st.text(),
        estimated_cold_ttft_ms=TIMES,
        saved_ms=TIMES,
        bytes_read=COUNTS,
        bytes_written=COUNTS,
        is_estimate_measured=st.booleans(),
        system_tokens=COUNTS,
        ahead_tokens=COUNTS,
        is_approximate=st.booleans(),
        runs=st.none() | st.lists(RUNS, max_size=4).map(tuple),
    ),
    price=st.none() | st.builds(TurnPrice, st.text(), MONEY, MONEY),
    finish_reason=st.sampled_from(get_args(FinishReason)),
)


@given(FIGURES)
def test_figures_are_read_as_they_were_stored(figures: Figures) -> None:
    assert decode(encode(figures), figures.finish_reason) == figures


@pytest.mark.parametrize("runs", [7, [[3]], [[3, "tape"]], [["3", "ram"]], [{"stop": 3}]])
def test_runs_that_nobody_can_read_are_not_known(runs: object) -> None:
    stored = json.dumps({"cache": {"outcome": "hit", "reason": "new_user_turn", "runs": runs}})
    figures = decode(stored)
    assert figures is not None
    assert figures.cache.runs is None


def test_what_an_older_version_stored_is_read() -> None:
    old = {
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "total_tokens": 107,
            "prompt_tokens_details": {
                "cached_tokens": 90,
                "cached_ram_tokens": 60,
                "cached_disk_tokens": 30,
            },
        },
        "timings": {"ttft_ms": 12.5, "decode_tokens_per_second": 20.0},
        "cache": {"outcome": "hit", "reason": "new_user_turn", "diverged_at": 90, "detail": "x"},
    }
    assert decode(json.dumps(old), "length") == Figures(
        Usage(100, 7, 60, 30),
        Timings(None, None, 12.5, None, None, 20.0),
        CacheReport("hit", "new_user_turn", 90, "x"),
        finish_reason="length",
    )
