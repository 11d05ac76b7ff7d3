"""The engine process: owns torch, the model and its KV, and answers one front end.

The main thread loads and computes; a reader thread takes messages, so that a stop acts at once.
What native code prints goes to the log, which is this process's stdout and stderr. When the front
end is gone the channel ends, and so does this process, after it has written out what is to be kept.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CostEstimate,
    ModelInfo,
    ModelLoading,
    ModelReady,
    Prepare,
    Prepared,
    TurnEvent,
    TurnFailed,
    TurnFinished,
    TurnRequest,
)
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.local.engine.wire import (
    CancelPrepare,
    Channel,
    ChannelClosedError,
    CloseEngine,
    CostsEstimated,
    EstimateCosts,
    PrepareTurn,
    RunTurn,
    SpillAll,
    StopTurn,
    portable,
)
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

LOAD_FAILED = 3
_ORPHAN_SECONDS = 60.0  # for writing out after the front end died


class Runner(Protocol):
    """What runs turns; see `turn_runner.TurnRunner`."""

    @property
    def info(self) -> ModelInfo: ...

    def run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        """The events of a turn; the error of a TurnFailed is a ChatcacheError."""

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]: ...

    def prepare(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]: ...

    def spill(self, segment_id: str | None = None) -> int: ...

    def close(self) -> None: ...


FromHost = RunTurn | EstimateCosts | PrepareTurn | SpillAll | CloseEngine
Emit = Callable[[BackendEvent], None]
RunnerFactory = Callable[[Emit], Runner]


class EngineServer:
    """Serves one channel until it is closed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[FromHost] = queue.SimpleQueue()
        self._deferred: deque[FromHost] = deque()
        self._stops: dict[str, threading.Event] = {}
        self._is_loading = threading.Event()
        self._wanted_prepare: str | None = None

    def serve(self, factory: RunnerFactory) -> int:
        """Load with `factory`, then answer until the end. Returns the exit code."""
        self._is_loading.set()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            runner = factory(self._send)
        except Exception as error:
            log.exception("loading failed")
            self._send(BackendFailed(_as_load_error(error)))
            return LOAD_FAILED
        self._is_loading.clear()
        try:
            self._send(ModelReady(runner.info))
            while not isinstance(message := self._next(), CloseEngine):
                if isinstance(message, EstimateCosts):
                    self._estimate(runner, message)
                elif isinstance(message, PrepareTurn):
                    self._prepare(runner, message.request)
                elif isinstance(message, SpillAll):
                    runner.spill(message.segment_id)
                else:
                    self._run(runner, message.request)
        finally:
            runner.close()
        return 0

    def _next(self) -> FromHost:
        return self._deferred.popleft() if self._deferred else self._inbox.get()

    def _run(self, runner: Runner, request: TurnRequest) -> None:
        """One turn. Between its events the cheap questions of the front end are answered."""
        stop = self._stops[request.turn_id]
        is_ended = False
        try:
            for event in runner.run(request, stop):
                self._send(event)
                is_ended = isinstance(event, (TurnFinished, TurnFailed))
                self._answer_questions(runner)
        except Exception as error:
            log.exception("turn %s failed", request.turn_id)
            self._send(TurnFailed(request.turn_id, portable(error)))
        else:
            if not is_ended:
                problem = UnavailableError("The engine ended the turn without a result.")
                self._send(TurnFailed(request.turn_id, problem))
        finally:
            del self._stops[request.turn_id]

    def _prepare(self, runner: Runner, request: Prepare) -> None:
        """Idle work, until it is done or something else is wanted."""
        prepared = Prepared(request.prepare_id, request.kind, was_cancelled=True)
        work = runner.prepare(request, lambda: self._wanted_prepare == request.prepare_id)
        try:
            while True:
                next(work)
                self._answer_questions(runner)
        except StopIteration as end:
            prepared = end.value
        except Exception:
            log.exception("idle work failed")
        self._send(prepared)

    def _answer_questions(self, runner: Runner) -> None:
        """Estimates and spills that wait in the inbox; everything else stays in order."""
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, EstimateCosts):
                self._estimate(runner, message)
            elif isinstance(message, SpillAll):
                runner.spill(message.segment_id)
            else:
                self._deferred.append(message)

    def _estimate(self, runner: Runner, question: EstimateCosts) -> None:
        try:
            answer = CostsEstimated(question.call_id, tuple(runner.estimate(question.journals)))
        except Exception as error:
            log.exception("estimate failed")
            answer = CostsEstimated(question.call_id, error=portable(error))
        self._send(answer)

    def _send(self, message: object) -> None:
        """Tell the front end; if it is gone there is nobody to tell, and the reader ends this."""
        with suppress(ChannelClosedError):
            self._channel.send(message)

    def _read(self) -> None:
        """Take messages until the front end closes, asks to close, or dies."""
        while True:
            try:
                message = self._channel.receive()
            except ChannelClosedError:
                self._leave_orphaned()
                return
            if isinstance(message, StopTurn):
                # The turn may end at this very moment, in the other thread.
                if (stop := self._stops.get(message.turn_id)) is not None:
                    stop.set()
            elif isinstance(message, PrepareTurn):
                self._wanted_prepare = message.request.prepare_id
                self._inbox.put(message)
            elif isinstance(message, CancelPrepare):
                self._wanted_prepare = None
            elif isinstance(message, RunTurn):
                self._wanted_prepare = None
                self._stops[message.request.turn_id] = threading.Event()
                self._inbox.put(message)
            elif isinstance(message, (EstimateCosts, SpillAll)):
                self._inbox.put(message)
            elif isinstance(message, CloseEngine):
                self._close()

    def _close(self) -> None:
        self._wanted_prepare = None
        for stop in list(self._stops.values()):
            stop.set()
        self._inbox.put(CloseEngine())

    def _leave_orphaned(self) -> None:
        """The front end is gone. Nothing is worth loading then; what was computed is kept."""
        if self._is_loading.is_set():
            os._exit(0)
        self._close()
        watchdog = threading.Timer(_ORPHAN_SECONDS, os._exit, args=(1,))
        watchdog.daemon = True
        watchdog.start()


def build_runner(settings: EngineSettings, emit: Emit) -> Runner:
    """Import torch, load the model, open its cache."""
    emit(ModelLoading("starting torch"))
    from chatcache.backends.local.model.libraries import collector_off, import_libraries

    with collector_off():
        import_libraries()
        from chatcache.backends.local.run import assemble

        return assemble.build_runner(assemble.load(settings, emit), settings, emit)


def _as_load_error(error: Exception) -> Exception:
    if isinstance(error, ChatcacheError):
        return error
    return UnavailableError(
        f"The engine could not start: {type(error).__name__}: {error}.",
        "The engine's log has the details.",
    )


def start(arguments: Sequence[str] | None = None) -> Channel:
    """Prepare this process and return its channel; the first message on it is the settings."""
    parser = argparse.ArgumentParser(prog="chatcache-engine")
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args(arguments)
    faulthandler.enable()
    # The terminal sends these to the whole group; the front end decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.set_inheritable(options.fd, False)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return Channel(options.fd)


def main(arguments: Sequence[str] | None = None) -> int:
    """The life of an engine process."""
    channel = start(arguments)
    try:
        settings = channel.receive()
    except ChannelClosedError:
        return 0
    if not isinstance(settings, EngineSettings):
        raise TypeError(f"expected EngineSettings first, got {type(settings).__name__}")
    if settings.is_offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    log.info("engine for %s", settings.model)
    return EngineServer(channel).serve(lambda emit: build_runner(settings, emit))


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    # Everything is written out; tearing down torch's threads and modules only takes time.
    os._exit(exit_code)
