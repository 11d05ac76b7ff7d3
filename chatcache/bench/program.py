"""The whole program as a person meets it: its start, its keys, and how soon a stop is obeyed.

Everything runs in processes of its own, with directories of its own. The terminal is a pty: a key
is timed from the moment it is typed until its letter is in what the program wrote to the screen.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from chatcache.backends.base import (
    BackendEvent,
    ChatMessage,
    PrefillProgress,
    Prepare,
    Prepared,
    SamplingParams,
    TextDelta,
    TurnFailed,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
)
from chatcache.backends.local.engine.client import LocalBackend
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.model.resolve import resolve_model
from chatcache.backends.local.model.source import open_source
from chatcache.bench.memory import ProcessMemory
from chatcache.bench.processes import Terminal, Typist, chat_command, home_environment
from chatcache.bench.report import CHATCACHE, Figure, Row, Say
from chatcache.bench.setup import Models
from chatcache.bench.starts import StartBench
from chatcache.chat.store import SessionStore
from chatcache.config import DATABASE_NAME
from chatcache.errors import UnavailableError
from chatcache.formatting import size
from chatcache.token_ids import NO_IDS, TokenIds

_STARTS = 3
_STOPS = 5
_MAX_KEYS = 400
_PAINTED_LETTERS = 40
_SECONDS = 120.0
_PREPARE_SECONDS = 60.0
_SPARE_TOKENS = 256
_ANSWER_TOKENS = 32
_SHORT_ANSWER = 4
_LONGEST_ANSWER = 256
_DRAFT_TOKENS = 200
_TEXT = "the quick brown fox looks at a lazy dog and goes home again because it rains"


class ProgramBench:
    """Rows of the program on one model."""

    def __init__(self, models: Models, directory: Path, tokens: int, threads: int | None):
        self._models = models
        self._home = directory
        # A message leaves room for its own answer.
        limit = models.tuned.config.max_position_embeddings
        self._tokens = min(tokens, limit - _SPARE_TOKENS)
        self._threads = threads
        self.rows: dict[str, Row] = {}
        self.figures: list[Figure] = []

    def run(self, say: Say) -> None:
        """Raises UnavailableError where the model cannot be started."""
        self._home.mkdir(parents=True)
        say("the program: --help, first paint")
        self._help()
        model = self._models.source
        prompt = self._prompt(self._tokens)
        self._configure()
        for _ in range(_STARTS - 1):
            self._start(model).close()
        self._sit(model, prompt, say)
        say("the program: stop")
        self._stop(model, prompt)
        self._first_words(model, prompt, say)

    def _prompt(self, num_tokens: int) -> str:
        return prompt_of(self._models.source, num_tokens, self._models.cache_dir)

    def _first_words(self, model: str, prompt: str, say: Say) -> None:
        starts = StartBench(
            model,
            prompt,
            home_environment(self._home / "starts"),
            dtype=self._models.tuned.dtype_name,
            quantize=self._models.quantize,
            threads=self._threads,
        )
        try:
            starts.run(say)
        finally:
            starts.close()
        self.rows |= starts.rows
        if starts.memory is not None:
            self.figures.append(_memory_figure(starts.memory, self._models.file_bytes))

    def _row(self, name: str, title: str, bound_by: str, *, is_p99: bool = False) -> Row:
        return self.rows.setdefault(name, Row(name, title, "program", bound_by, is_p99=is_p99))

    def _configure(self) -> None:
        model = "[model]\n" + ("" if self._threads is None else f"threads = {self._threads}\n")
        if self._models.quantize is not None:
            model += f'quantize = "{self._models.quantize}"\n'
        sampling = f"[sampling]\ntemperature = 0.0\nmax_new_tokens = {_ANSWER_TOKENS}\n"
        (self._home / "config.toml").write_text(model + sampling)

    def _help(self) -> None:
        row = self._row("help", "--help", "Python, imports")
        for _ in range(_STARTS):
            began = time.perf_counter()
            subprocess.run(
                chat_command("--help"),
                env=home_environment(self._home),
                stdout=subprocess.DEVNULL,
                check=True,
            )
            row.add(CHATCACHE, time.perf_counter() - began)

    # in a terminal

    def _start(self, model: str) -> Terminal:
        row = self._row("paint", "first paint of the chat", "Python, imports")
        terminal = Terminal(chat_command("--model", model), home_environment(self._home))
        painted = terminal.until(_is_painted, _SECONDS)
        if painted is None:
            terminal.close()
            raise UnavailableError("The chat did not appear in its terminal.", "Run doctor.")
        row.add(CHATCACHE, painted - terminal.began)
        return terminal

    def _sit(self, model: str, prompt: str, say: Say) -> None:
        """Type while the model is loaded, then while it reads a long message."""
        loading = self._row("echo_loading", "a key, model loading: p99", "the screen", is_p99=True)
        reading = self._row("echo_prefill", "a key, while it reads: p99", "the screen", is_p99=True)
        terminal = self._start(model)
        try:
            typist = Typist(terminal)
            say("the program: keys while the model is loaded")
            while not terminal.has_shown(is_ready) and loading.num_samples < _MAX_KEYS:
                loading.add(CHATCACHE, typist.key())
            say(f"the program: keys while it reads {self._tokens:,} tokens")
            typist.clear()
            with Watch(self._home / "data" / DATABASE_NAME) as watch:
                send(terminal, watch, prompt)
                while not watch.is_answered() and reading.num_samples < _MAX_KEYS:
                    reading.add(CHATCACHE, typist.key())
        finally:
            terminal.close()

    # without a screen

    def _stop(self, model: str, prompt: str) -> None:
        """From the call of `stop` to the end of the turn, as the front end sees it."""
        load = self._row("load", "the model is loaded", "disk, Python")
        reading = self._row("stop_prefill", "stop, while it reads", "one chunk of 512")
        writing = self._row("stop_decode", "stop, while it answers", "two steps")
        settings = EngineSettings(
            model=model,
            dtype=self._models.tuned.dtype_name,
            quantize=self._models.quantize or "none",
            is_offline=True,
            num_threads=self._threads,
            cache_dir=self._home / "stop",
            log_path=self._home / "engine.log",
        )
        backend = LocalBackend(settings)
        try:
            if self._models.is_packed:  # what is made of the files once is there from now on
                _load_once(settings)
            backend.start()
            load.add(CHATCACHE, backend.wait_ready(_SECONDS).load_ms / 1000)
            for _ in range(_STOPS):
                for row, text, kind in (
                    (reading, prompt, PrefillProgress),
                    (writing, _TEXT, TextDelta),
                ):
                    seconds = _stop_at(backend, text, kind)
                    if seconds is not None:
                        row.add(CHATCACHE, seconds)
            self._after_draft(backend)
        except TimeoutError as error:
            raise UnavailableError("The engine did not start in time.", "Run doctor.") from error
        finally:
            backend.close()

    def _after_draft(self, backend: LocalBackend) -> None:
        """Send a message whose words the engine has read while they were typed, all but the last,
        and one of which it has read nothing."""
        ready = self._row(
            "draft_ready", f"sent after a draft of {_DRAFT_TOKENS}", "two decode steps"
        )
        plain = self._row("draft_plain", "the same, not read ahead", "matrix rate")
        question = ChatMessage("user", self._prompt(min(_DRAFT_TOKENS, self._tokens)))
        planned, result = _answered(backend, (question,))
        history = question, ChatMessage("assistant", result.text, result.reasoning)
        journal = planned.new_ids + result.answer_ids
        text = self._prompt(_DRAFT_TOKENS)
        for number in range(2 * _STOPS):
            row, draft = plain, f"{number} is a number. {text}"
            if number % 2:
                row, typed = ready, ChatMessage("user", draft.rsplit(" ", 1)[0])
                if not _has_read_ahead(backend, (*history, typed), journal):
                    continue
            _, result = _answered(backend, (*history, ChatMessage("user", draft)), journal)
            if result.timings.ttft_ms is not None:
                row.add(CHATCACHE, result.timings.ttft_ms / 1000)


class Watch:
    """Looks at the conversations that the program in the terminal writes."""

    def __init__(self, path: Path):
        self._store = SessionStore(path)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    def is_asked(self) -> bool:
        return any(session.num_turns for session in self._store.list())

    def is_answered(self) -> bool:
        """Whether the newest message is an answer."""
        newest = next(iter(self._store.list()), None)
        tip = None if newest is None else self._store.sessions.tip(newest.session_id)
        return tip is not None and self._store.nodes.get(tip).node.role == "assistant"


def send(terminal: Terminal, watch: Watch, prompt: str) -> None:
    """Paste a message and send it. Raises UnavailableError if it does not get there."""
    terminal.paste(prompt)
    terminal.until(lambda words: "paste" in words, _SECONDS)
    end = time.monotonic() + _SECONDS
    terminal.write("\r")
    while not watch.is_asked():
        if time.monotonic() > end:
            raise UnavailableError("The chat did not take the message.", "Run doctor.")
        time.sleep(0.02)


def is_ready(words: str) -> bool:
    """Whether the chat says that its model is loaded."""
    return re.search(r"· (cpu|cuda|mps)\b|\bready\b", words) is not None


def prompt_of(model: str, num_tokens: int, cache_dir: Path | None = None) -> str:
    """Text of about that many tokens for this model. `cache_dir` may have its tokenizer."""
    found = resolve_model(model, is_offline=True)
    if isinstance(found, Path):
        found = open_source(model, found, cache_dir).directory
    tokenizer: Any = AutoTokenizer.from_pretrained(found, local_files_only=True)
    words = _TEXT.split()
    per_text = len(tokenizer.encode(_TEXT, add_special_tokens=False))
    repeated = words * (num_tokens // per_text + 1)
    return " ".join(repeated[: len(words) * num_tokens // per_text])


def _memory_figure(memory: ProcessMemory, file_bytes: int) -> Figure:
    """All that an engine holds: the weights, and Python with its libraries."""
    note = (
        f"own {size(memory.anonymous)}, of files {size(memory.mapped)}, "
        f"Pss {size(memory.proportional)}; weights on disk {size(file_bytes)}"
    )
    return Figure("engine_memory", "engine after a turn", memory.resident, "bytes", note=note)


def _is_painted(words: str) -> bool:
    return sum(letter.isalnum() for letter in words) >= _PAINTED_LETTERS


def _load_once(settings: EngineSettings) -> None:
    backend = LocalBackend(settings)
    try:
        backend.start()
        backend.wait_ready(_SECONDS)
    finally:
        backend.close()


def _stop_at(backend: LocalBackend, prompt: str, kind: type) -> float | None:
    """Stop at the second event of a kind; the seconds until the turn has ended. None: it ended
    before (what random weights write may be no text at all, hence the sampling and the limit)."""
    request = TurnRequest(
        turn_id=uuid.uuid4().hex,
        messages=(ChatMessage("user", prompt),),
        sampling=SamplingParams(temperature=1.0, seed=0, max_new_tokens=_LONGEST_ANSWER),
        use_cache=False,
    )
    seen, began = 0, None
    turn = backend.ask(request)
    for event in turn:
        if isinstance(event, TurnFailed):
            raise UnavailableError(f"The engine failed: {event.error}", "Look into its log.")
        if isinstance(event, TurnFinished):
            break
        seen += isinstance(event, kind)
        if seen == 2 and began is None:
            began = time.perf_counter()
            turn.stop()
    return None if began is None else time.perf_counter() - began


def _answered(
    backend: LocalBackend, messages: tuple[ChatMessage, ...], journal: TokenIds = NO_IDS
) -> tuple[TurnPlanned, TurnResult]:
    """Have the last message answered. Raises UnavailableError."""
    planned: TurnPlanned | None = None
    for event in backend.ask(_short_turn(messages, journal)):
        if isinstance(event, TurnFailed):
            raise UnavailableError(f"The engine failed: {event.error}", "Look into its log.")
        if isinstance(event, TurnPlanned):
            planned = event
        if isinstance(event, TurnFinished) and planned is not None:
            return planned, event.result
    raise UnavailableError("The engine gave no answer.", "Look into its log.")


def _has_read_ahead(
    backend: LocalBackend, messages: tuple[ChatMessage, ...], journal: TokenIds
) -> bool:
    """Let the engine read ahead until it is done; False when it did not begin."""
    done = threading.Event()

    def listen(event: BackendEvent) -> None:
        if isinstance(event, Prepared) and event.prepare_id == wanted.prepare_id:
            done.set()

    wanted = Prepare(uuid.uuid4().hex, "draft", _short_turn(messages, journal))
    unsubscribe = backend.subscribe(listen)
    try:
        return backend.prepare(wanted) and done.wait(_PREPARE_SECONDS)
    finally:
        unsubscribe()


def _short_turn(messages: tuple[ChatMessage, ...], journal: TokenIds) -> TurnRequest:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=_SHORT_ANSWER)
    turn = TurnRequest(uuid.uuid4().hex, messages, journal, sampling)
    return replace(turn, num_read=len(messages) - 1)
