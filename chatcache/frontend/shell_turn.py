"""One turn in the shell: streams the answer, narrates progress, and stops when asked to.

Owns the signals of a running turn. The events come from a thread, so that a signal is answered at
any moment; the first one stops the turn and keeps what was written, the second leaves at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    ModelLoading,
    ModelReady,
    PrefillProgress,
    TextDelta,
)
from chatcache.chat.views import AnswerSaved, ChatEvent, WaitingForModel
from chatcache.formatting import duration, plural, rate
from chatcache.frontend import figures, servers
from chatcache.frontend.shell_output import AnswerStream, Narrator

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

EventSource = Callable[[], Iterator[ChatEvent]]


@dataclass(frozen=True, slots=True)
class Answered:
    """How a turn ended. `signal_number`: what interrupted it; `is_unread`: stdout was closed."""

    saved: AnswerSaved
    signal_number: int | None = None
    is_unread: bool = False

    @property
    def exit_code(self) -> int:
        if self.signal_number is not None:
            return 128 + self.signal_number
        return 130 if self.is_unread else 0


@dataclass(frozen=True, slots=True)
class _Interrupted:
    signal_number: int


@dataclass(frozen=True, slots=True)
class _Ended:
    error: BaseException | None = None


class ShellTurn:
    """Runs one turn to its end. `stream` is None when the answer is printed as JSON later."""

    def __init__(
        self, service: ChatService, narrator: Narrator, stream: AnswerStream | None
    ) -> None:
        self._service = service
        self._narrator = narrator
        self._stream = stream
        self._inbox: SimpleQueue[ChatEvent | _Interrupted | _Ended] = SimpleQueue()
        self._saved: AnswerSaved | None = None
        self._signal_number: int | None = None
        self._is_unread = False

    def run(self, events: EventSource) -> Answered:
        """Raises what the turn raises, after what had been produced was saved."""
        thread = threading.Thread(
            target=self._produce, args=(events,), name="chatcache-turn", daemon=True
        )
        with _handling_signals(self._inbox):
            thread.start()
            try:
                self._consume()
            finally:
                if self._stream is not None and not self._is_unread:
                    self._stream.end()
                self._narrator.release()
        if self._saved is None:
            raise RuntimeError("the turn ended without an answer or an error")
        return Answered(self._saved, self._signal_number, self._is_unread)

    def _produce(self, events: EventSource) -> None:
        error: BaseException | None = None
        try:
            for event in events():
                self._inbox.put(event)
        except BaseException as raised:
            error = raised
        self._inbox.put(_Ended(error))

    def _consume(self) -> None:
        while True:
            item = self._inbox.get()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            if isinstance(item, _Interrupted):
                self._signal_number = item.signal_number
                self._service.stop()
            else:
                self._take(item)
                if self._signal_number is not None:
                    self._service.stop()  # again: one that comes before the turn begins is lost

    def _take(self, event: ChatEvent) -> None:
        if isinstance(event, WaitingForModel):
            self._narrator.progress("waiting for the model")
        elif isinstance(event, PrefillProgress):
            reused = f" ({event.cached:,} reused)" if event.cached else ""
            self._narrator.progress(f"reading {event.done:,} / {event.total:,} tokens{reused}")
        elif isinstance(event, TextDelta):
            self._take_text(event)
        elif isinstance(event, AnswerSaved):
            self._saved = event

    def _take_text(self, delta: TextDelta) -> None:
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
            self._service.stop()


def _counted(what: str, delta: TextDelta) -> str:
    """`writing: 12 tokens`; a server does not always count on the way."""
    return f"{what}: {plural(delta.num_tokens, 'token')}" if delta.num_tokens else what


@contextlib.contextmanager
def _handling_signals(inbox: SimpleQueue[Any]) -> Iterator[None]:
    """The first interruption goes to the inbox (safe in a handler); the second ends the process."""
    num_signals = 0

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal num_signals
        num_signals += 1
        if num_signals > 1:
            os._exit(128 + number)
        inbox.put(_Interrupted(number))

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


_STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def watch_backend(service: ChatService, narrator: Narrator) -> None:
    """Narrate what the backend does: loading, and anything that went wrong with the cache."""

    def tell(event: BackendEvent) -> None:
        if isinstance(event, ModelLoading):
            share = f" {100 * event.done // event.total} %" if event.total else ""
            narrator.progress(f"{event.stage}{share}")
        elif isinstance(event, ModelReady):
            narrator.progress(f"{event.info.model} is ready")
            if told := servers.privacy_words(event.info):
                narrator.note(told)
        elif isinstance(event, CacheEvent) and event.kind in ("quarantined", "warning"):
            narrator.warn(event.text)
        elif isinstance(event, BackendFailed) and event.will_restart:
            narrator.warn("The engine ended and is being started again.")

    if service.backend is not None:
        service.backend.subscribe(tell)


def note_figures(narrator: Narrator, saved: AnswerSaved) -> None:
    """The line below an answer: what was reused, and how fast it was."""
    result = saved.result
    where = f"[{saved.session_name}, turn {saved.turn}] "
    if result.cache.reason == "remote":
        narrator.note(where + figures.footer(figures.from_result(result)))
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
    if result.finish_reason == "length":
        parts.append("cut at the token limit")
    narrator.note(where + " · ".join(parts))
