"""Turns for the views of the lens, made up: any text of tokens, any fates."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from chatcache.backends.questions import TokenPiece
from chatcache.backends.usage import CacheReport, Figures, Outcome, TierRun, Timings, Usage
from chatcache.cache.views import joined, num_tokens_of
from chatcache.chat.readings import MessageRun, TurnReading
from chatcache.token_ids import TokenIds

# Escapes, markup, what joins, what has two cells or none, what reorders a line.
HOSTILE = (
    "\x1b[31m",
    "\x1b]0;x\x07",
    "[red]",
    "[/]",
    "\r",
    "\u202e",
    "\u200d",
    "\u0301",
    "e\u0301",
    "日本",
    "👩\u200d🚀",
    "👍🏽",
    "\ufe0f",
    "\ud800",
    "│",
    "",
    " " * 90,
    "a" * 200,
    "\x00",
    "\u1160",
    "\u3000",
)
PLAIN = ("Hello", " world", "\n", ".\n\n", " ", "\t", "ing")
TEXTS = st.sampled_from([*HOSTILE, *PLAIN]) | st.text(max_size=6)
PIECES = st.builds(
    lambda text, kind: (text, kind == 1, kind == 2), TEXTS, st.integers(0, 5)
) | st.just(("<E2><82>", False, True))


def reading(
    num_prompt: int,
    num_answer: int = 0,
    runs: tuple[TierRun, ...] | None = (),
    *,
    tokens: list[int] | None = None,
    ends: tuple[int, ...] = (),
    reason: Any = "new_user_turn",
    **more: Any,
) -> TurnReading:
    """A turn with ids from 0 on. `ends`: where the messages end, turns 1, 1, 2, 2 and so on."""
    total = num_prompt + num_answer
    ids = TokenIds(range(total) if tokens is None else tokens)
    cached = runs[-1].stop if runs else 0
    disk = num_tokens_of(runs or (), "disk")
    stops = [*ends, num_prompt, total]
    starts = [0, *stops]
    roles: tuple[Any, Any] = ("user", "assistant")
    messages = [
        MessageRun(start, stop, ((1 + index // 2, roles[index % 2]),))
        for index, (start, stop) in enumerate(zip(starts, stops, strict=False))
        if stop > start
    ]
    outcome: Outcome = "partial" if cached else "miss"
    outcome = "hit" if cached and reason == "new_user_turn" else outcome
    figures = Figures(
        Usage(num_prompt, num_answer, cached - disk, disk),
        Timings(1.0, 40.0, 60.0, 500.0, 100.0, 50.0),
        CacheReport(outcome, reason, cached, "one sentence", runs=runs),
    )
    facts: dict[str, Any] = {"figures": figures, **more}
    return TurnReading(
        session_id="s_1",
        session_name="notes",
        turn=2,
        num_turns=3,
        question="q",
        model="builtin",
        tokenizer_id="t",
        prompt_ids=ids[:num_prompt],
        answer_ids=ids[num_prompt:],
        messages=tuple(messages),
        **facts,
    )


@st.composite
def readings(draw: st.DrawFn) -> TurnReading:
    num_prompt, num_answer = draw(st.integers(1, 300)), draw(st.integers(0, 40))
    cached = draw(st.integers(0, num_prompt - 1))
    inner = draw(st.lists(st.integers(1, max(1, cached)), max_size=4))
    tiers = st.sampled_from(["vram", "ram", "disk"])
    cuts = sorted({*inner, cached} if cached else ())
    runs = joined(TierRun(stop, draw(tiers)) for stop in cuts)
    ends = tuple(sorted(set(draw(st.lists(st.integers(1, num_prompt), max_size=5)))))
    tokens = [draw(st.integers(0, 30)) for _ in range(num_prompt + num_answer)]
    return reading(num_prompt, num_answer, runs, tokens=tokens, ends=ends)


PIECE_LISTS = st.lists(PIECES, min_size=31, max_size=31).map(
    lambda kinds: tuple(TokenPiece(index, *kind) for index, kind in enumerate(kinds))
)
