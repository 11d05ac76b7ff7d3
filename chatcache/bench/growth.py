"""`chatcache bench growth`: what the n-th turn of a long chat costs, and other large things.

A chat of 200 turns on the whole program below the screen: conversations, template, journal, engine,
segments. Then many conversations, a very large paste, and a very long prompt in the terminal. The
default model is tiny, so what grows is what chatcache does, not what the model computes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.bench.chart import strip_chart
from chatcache.bench.processes import Terminal, Typist, chat_command, home_environment
from chatcache.bench.program import Watch, is_ready, prompt_of, send
from chatcache.bench.report import Say, milliseconds, p99
from chatcache.bench.run import cpu_name, narrator, scratch
from chatcache.bench.setup import load_shape, shape_directory
from chatcache.chat.conversation import Message
from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnOptions
from chatcache.chat.views import AnswerSaved
from chatcache.config import DATABASE_NAME
from chatcache.errors import UnavailableError
from chatcache.formatting import size

_SHAPE = "tiny"
_THREADS = 1  # a tiny model is not faster with more
_MESSAGE_TOKENS = 84
_ANSWER_TOKENS = 16
_LOOKS = 5
_PASTE_BYTES = 2_000_000
_PROMPT_TOKENS = 30_000
_MAX_KEYS = 200
_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class TurnCost:
    """`ttft_ms` is the engine's, `overhead_ms` what the whole turn took beside prefill and decode.

    `bytes_written` are those given to the disk for the `new_tokens` of the turn.
    """

    turn: int
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    overhead_ms: float
    bytes_written: int


def run(options: argparse.Namespace) -> int:
    """Measure, tell people on stderr, and write one JSON object to stdout."""
    say = narrator(is_quiet=options.json)
    with scratch(options.directory) as directory:
        model = _model(options, directory)
        say(f"a chat of {options.turns:,} turns")
        turns = long_chat(model, directory / "chat", options)
        say(f"{options.sessions:,} conversations")
        sessions = many_sessions(directory / "sessions.sqlite3", options.sessions)
        threads = options.threads or _THREADS
        large = {}
        if options.program:
            large = large_texts(model, directory / "program", threads, say)
    result = {
        "conditions": {"model": options.model or options.shape or _SHAPE, "cpu": cpu_name()},
        "turns": [asdict(turn) for turn in turns],
        "sessions": sessions,
        "large": large,
    }
    say("\n" + as_text(turns, sessions, large))
    print(json.dumps({"growth": result}))
    return 0


def long_chat(model: str, home: Path, options: argparse.Namespace) -> list[TurnCost]:
    """The cost of each turn of one conversation. Raises UnavailableError."""
    message = prompt_of(model, _MESSAGE_TOKENS)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=_ANSWER_TOKENS)
    home.mkdir(parents=True)
    backend = LocalBackend(
        EngineSettings(
            model=model,
            is_offline=True,
            num_threads=options.threads or _THREADS,
            cache_dir=home / "cache",
            log_path=home / "engine.log",
        )
    )
    costs: list[TurnCost] = []
    with ChatService(SessionStore(home / DATABASE_NAME), backend) as service:
        backend.start()
        backend.wait_ready(_SECONDS)
        session_id = service.create_session("growth").session_id
        for turn in range(1, options.turns + 1):
            began = time.perf_counter()
            events = service.send(session_id, f"{turn}. {message}", TurnOptions(sampling))
            saved = [event for event in events if isinstance(event, AnswerSaved)]
            costs.append(_cost(turn, saved[-1], 1000 * (time.perf_counter() - began)))
    return costs


def many_sessions(path: Path, count: int) -> dict[str, Any]:
    """Seconds to list and to search conversations of one message each."""
    with ChatService(SessionStore(path), None) as service:
        store = service.store
        with store.database.writing():
            for number in range(count):
                row = store.create(f"chat number {number}")
                text = f"What is special about {number}? It has a colour and a shape."
                store.add_user(row.session_id, None, Message("user", text), None)
        listed = [_timed(service.list_sessions) for _ in range(_LOOKS)]
        rare = [_timed(lambda: service.search(f"special {count // 2}")) for _ in range(_LOOKS)]
        common = [_timed(lambda: service.search("colour")) for _ in range(_LOOKS)]
    return {
        "count": count,
        "list_ms": 1000 * statistics.median(listed),
        "search_rare_ms": 1000 * statistics.median(rare),
        "search_common_ms": 1000 * statistics.median(common),
    }


def large_texts(model: str, home: Path, threads: int, say: Say) -> dict[str, Any]:
    """A paste of 2 MB, and keys while a prompt of 30,000 tokens is read."""
    # A home each: what is not sent is kept as a draft.
    homes = home / "paste", home / "prompt"
    for place in homes:
        place.mkdir(parents=True)
        (place / "config.toml").write_text(
            f"[model]\nthreads = {threads}\n[sampling]\nmax_new_tokens = {_ANSWER_TOKENS}\n"
        )
    say(f"a paste of {size(_PASTE_BYTES)}")
    paste_seconds = _paste(model, homes[0])
    say(f"a prompt of {_PROMPT_TOKENS:,} tokens")
    keys, read_seconds = _long_prompt(model, homes[1])
    slowest = p99(keys)
    return {
        "paste_bytes": _PASTE_BYTES,
        "paste_ms": None if paste_seconds is None else 1000 * paste_seconds,
        "prompt_tokens": _PROMPT_TOKENS,
        "prompt_ms": 1000 * read_seconds,
        "keys": len(keys),
        "key_median_ms": 1000 * statistics.median(keys) if keys else None,
        "key_p99_ms": None if slowest is None else 1000 * slowest,
    }


def as_text(turns: Sequence[TurnCost], sessions: dict[str, Any], large: dict[str, Any]) -> str:
    warm = turns[1:] or turns
    last = turns[-1]
    per_token = [turn.bytes_written / max(1, turn.new_tokens) for turn in warm]
    parts = [
        f"A chat of {len(turns):,} turns, {last.prompt_tokens:,} tokens at the end "
        "(the first turn is left out)",
        strip_chart("Time to the first token", [t.ttft_ms for t in warm], _milliseconds),
        strip_chart("Beside the model: words, journal", [t.overhead_ms for t in warm],
                    _milliseconds),
        strip_chart("Written per new token", per_token, lambda value: size(round(value))),
        f"{sessions['count']:,} conversations\n"
        f"  list {_milliseconds(sessions['list_ms'])}, search a rare word "
        f"{_milliseconds(sessions['search_rare_ms'])}, a common one "
        f"{_milliseconds(sessions['search_common_ms'])}",
    ]  # fmt: skip
    if large:
        parts.append("\n".join(["Large texts in the chat", *_large_lines(large)]))
    return "\n\n".join(parts)


def _large_lines(large: dict[str, Any]) -> list[str]:
    paste = large["paste_ms"]
    lines = [
        f"  paste of {size(large['paste_bytes'])}: the next key shows after "
        + ("more than the time limit" if paste is None else _milliseconds(paste)),
        f"  prompt of {large['prompt_tokens']:,} tokens: answered after "
        f"{_milliseconds(large['prompt_ms'])}",
    ]
    if large["keys"]:
        lines.append(
            f"  {large['keys']} keys meanwhile: median {_milliseconds(large['key_median_ms'])}, "
            f"p99 {_milliseconds(large['key_p99_ms'])}"
        )
    return lines


def _model(options: argparse.Namespace, directory: Path) -> str:
    """What the engine is started with."""
    if options.model is not None:
        return str(options.model)
    return shape_directory(load_shape(options.shape or _SHAPE, options.dtype), directory / "model")


def _cost(turn: int, saved: AnswerSaved, wall_ms: float) -> TurnCost:
    usage, timings = saved.result.usage, saved.result.timings
    ttft, decode = timings.ttft_ms or 0.0, timings.decode_ms or 0.0
    return TurnCost(
        turn=turn,
        prompt_tokens=usage.prompt_tokens or 0,
        new_tokens=(usage.computed_tokens or 0) + (usage.completion_tokens or 0),
        ttft_ms=ttft,
        overhead_ms=max(0.0, wall_ms - ttft - decode),
        bytes_written=saved.result.cache.bytes_written,
    )


def _paste(model: str, home: Path) -> float | None:
    """Seconds from a large paste until the next key is seen."""
    terminal = _sitting(model, home)
    try:
        text = "A line of a very long text.\n" * (_PASTE_BYTES // 28)
        began = terminal.paste(text)
        terminal.write("qxzj")
        seen = terminal.until(lambda words: "qxzj" in words, _SECONDS)
        return None if seen is None else seen - began
    finally:
        terminal.close()


def _long_prompt(model: str, home: Path) -> tuple[list[float], float]:
    """Seconds of each key while the prompt is read, and of the whole turn."""
    terminal = _sitting(model, home)
    keys: list[float] = []
    try:
        typist = Typist(terminal)
        with Watch(home / "data" / DATABASE_NAME) as watch:
            send(terminal, watch, prompt_of(model, _PROMPT_TOKENS))
            began = time.perf_counter()
            while not watch.is_answered() and len(keys) < _MAX_KEYS:
                keys.append(typist.key())
            while not watch.is_answered() and time.perf_counter() - began < _SECONDS:
                time.sleep(0.05)
            return keys, time.perf_counter() - began
    finally:
        terminal.close()


def _sitting(model: str, home: Path) -> Terminal:
    terminal = Terminal(chat_command("--model", model), home_environment(home))
    end = time.monotonic() + _SECONDS
    while not terminal.has_shown(is_ready):
        if time.monotonic() > end:
            terminal.close()
            raise UnavailableError("The chat did not load its model in time.", "Run doctor.")
        time.sleep(0.1)
    return terminal


def _timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _milliseconds(value: float) -> str:
    return milliseconds(value / 1000)
