"""One turn in the shell: streams the answer, narrates progress, and stops when asked to.

Owns the signals of a running turn: the first one stops the turn and keeps what was written, the
second leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    ModelLoading,
    ModelReady,
    PrefillProgress,
    TextDelta,
    TurnWaiting,
)
from chatcache.chat.chat_turn import ChatTurn
from chatcache.chat.figures import figures_of
from chatcache.chat.service import ChatService
from chatcache.chat.views import AnswerSaved, ChatEvent, WaitingForModel
from chatcache.errors import EngineDiedError
from chatcache.formatting import duration, model_label, plural, rate
from chatcache.frontend import figures, servers
from chatcache.frontend.engines import waiting_words
from chatcache.frontend.sampling import Sampling
from chatcache.frontend.shell_output import AnswerStream, Narrator

_STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ShellTurn:
    """Runs one turn to its end. `stream` is None when the answer is printed as JSON later."""

    def __init__(self, narrator: Narrator, stream: AnswerStream | None) -> None:
        self._narrator = narrator
        self._stream = stream
        self._saved: AnswerSaved | None = None
        self._signal_number: int | None = None
        self._is_unread = False

    @property
    def exit_code(self) -> int:
        """Of a command whose turn has been interrupted, or whose stdout was closed, or whose engine
        was ended; else 0."""
        if self._signal_number is not None:
            return 128 + self._signal_number
        if self._is_unread:
            return 130
        return EngineDiedError.exit_code if self.is_cut else 0

    @property
    def is_cut(self) -> bool:
        """Whether the answer was stopped by somebody else: by whoever ended the engine."""
        is_mine = self._signal_number is not None or self._is_unread
        return (
            not is_mine
            and self._saved is not None
            and self._saved.result.finish_reason == "stopped"
        )

    def run(self, turn: ChatTurn) -> AnswerSaved:
        """Raises what the turn raises, after what had been produced was saved."""
        with self._handling_signals(turn):
            try:
                for event in turn:
                    self._take(turn, event)
            finally:
                if self._stream is not None and not self._is_unread:
                    self._stream.end()
                self._narrator.release()
        if self._saved is None:
            raise RuntimeError("the turn ended without an answer or an error")
        return self._saved

    @contextlib.contextmanager
    def _handling_signals(self, turn: ChatTurn) -> Iterator[None]:
        """The first interruption stops the turn; the second ends the process."""

        def interrupt(number: int, _frame: FrameType | None) -> None:
            if self._signal_number is not None:
                os._exit(128 + number)
            self._signal_number = number
            turn.stop()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = list(_STOPPING_SIGNALS)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # it was started with `nohup`
            heard.remove(signal.SIGHUP)
        before = {number: signal.signal(number, interrupt) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, turn: ChatTurn, event: ChatEvent) -> None:
        if isinstance(event, WaitingForModel):
            self._narrator.progress("waiting for the model")
        elif isinstance(event, TurnWaiting):
            if words := waiting_words(event):
                self._narrator.progress(f"waiting: {words}")
        elif isinstance(event, PrefillProgress):
            reused = f" ({event.cached:,} reused)" if event.cached else ""
            self._narrator.progress(f"reading {event.done:,} / {event.total:,} tokens{reused}")
        elif isinstance(event, TextDelta):
            self._take_text(turn, event)
        elif isinstance(event, AnswerSaved):
            self._saved = event
            if event.remark:
                self._narrator.warn(event.remark)

    def _take_text(self, turn: ChatTurn, delta: TextDelta) -> None:
        if delta.is_reasoning:
            self._narrator.progress(_counted("thinking", delta))
            return
        if self._stream is None:
            self._narrator.progress(_counted("writing", delta))
            return
        self._narrator.hold()
        if self._is_unread:
            return
        try:
            self._stream.write(delta.text)
        except BrokenPipeError:
            # Whoever read the answer has left; what was written so far is kept.
            self._is_unread = True
            turn.stop()


def _counted(what: str, delta: TextDelta) -> str:
    """`writing: 12 tokens`; a server does not always count on the way."""
    return f"{what}: {plural(delta.num_tokens, 'token')}" if delta.num_tokens else what


def watch_backend(
    service: ChatService, narrator: Narrator, sampling: Callable[[], Sampling] = Sampling
) -> None:
    """Narrate what the backend does: loading, and anything that went wrong with the cache; what
    the model makes of the `sampling` in force; and what is to be known of the place."""

    def tell(event: BackendEvent) -> None:
        if isinstance(event, ModelLoading):
            share = f" {100 * event.done // event.total} %" if event.total else ""
            narrator.progress(f"{event.stage}{share}")
        elif isinstance(event, ModelReady):
            label = model_label(event.info.model, event.info.quantization)
            narrator.progress(f"{label} is ready")
            for remark in (*event.info.remarks, sampling().remark(event.info)):
                if remark:
                    narrator.warn(remark)
            if told := servers.privacy_words(event.info):
                narrator.note(told)
        elif isinstance(event, CacheEvent) and event.kind in ("quarantined", "warning"):
            narrator.warn(event.text)
        elif isinstance(event, BackendFailed) and event.will_restart:
            narrator.warn("The engine ended and is being started again.")

    for note in service.store.untold():
        narrator.warn(note)
    if service.backend is not None:
        service.backend.subscribe(tell)


def note_figures(narrator: Narrator, saved: AnswerSaved) -> None:
    """The line below an answer: what was reused, and how fast it was."""
    result = saved.result
    if warning := figures.ending_warning(figures_of(result)):
        narrator.warn(warning)
    where = f"[{saved.session_name}, turn {saved.turn}] "
    if result.cache.reason == "remote":
        narrator.note(where + figures.footer(figures_of(result)))
        return
    if not result.usage.prompt_tokens:
        narrator.note(result.cache.detail)
        return
    usage, timings = result.usage, result.timings
    parts = [f"{usage.cached_tokens:,} reused", f"{usage.computed_tokens:,} computed"]
    if result.cache.reason != "new_user_turn" and result.cache.detail:
        parts.append(result.cache.detail)
    elif result.cache.is_approximate:
        parts.append("approximate (int8)")
    if timings.ttft_ms is not None:
        parts.append(f"TTFT {duration(timings.ttft_ms)}")
    speed = timings.decode_tokens_per_second
    tokens = plural(usage.completion_tokens or 0, "token")
    parts.append(f"{tokens} at {rate(speed)}/s" if speed is not None else tokens)
    if result.finish_reason in ("length", "loop"):
        parts.append(figures.ENDINGS[result.finish_reason].partition(",")[0])
    narrator.note(where + " · ".join(parts))
