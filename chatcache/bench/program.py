"""The whole program as a person meets it: its start, its keys, and its first word.

Everything runs in processes of its own, with directories of its own. The terminal is a pty: a key
is timed from the moment it is typed until its letter is in what the program wrote to the screen.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

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

_STARTS = 3
_MAX_KEYS = 400
_PAINTED_LETTERS = 40
_SECONDS = 120.0
_SPARE_TOKENS = 256
_ANSWER_TOKENS = 32
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
