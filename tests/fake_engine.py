"""An engine process without a model, started by `test_host.py` in place of the real one.

The model name says how it loads ("broken", "dies", "never", anything else: well), the last message
what the turn does ("die", "until stopped", "raise", "nothing", anything else: it is said again).
Idle work takes three steps, or goes on "until cancelled", or fails ("raise").
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from chatcache.backends.base import (
    CacheEvent,
    CacheReport,
    CostEstimate,
    ModelInfo,
    ModelLoading,
    Prepare,
    Prepared,
    TextDelta,
    Timings,
    TurnEvent,
    TurnFinished,
    TurnPlanned,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.backends.local.engine.process import leave, main
from chatcache.backends.local.engine.server import Emit
from chatcache.backends.local.engine.settings import EngineSettings
from chatcache.backends.questions import Answer, AskAttention, Question, Tokenize, TokenPieces
from chatcache.errors import ModelLoadError
from chatcache.token_ids import TokenIds

DRAINED = "drained"
OUTDATED = "outdated"
ENOUGH = "enough"


def result(text: str, finish_reason: str) -> TurnResult:
    return TurnResult(
        text=text,
        reasoning=None,
        finish_reason=finish_reason,  # type: ignore[arg-type]
        answer_ids=TokenIds((1, 2)),
        usage=Usage(3, 2, 0, 0),
        timings=Timings(None, None, None, None, None, None),
        cache=CacheReport("miss", "cold_start", 0, ""),
    )


class EchoRunner:
    """Says the last message again."""

    def __init__(self, settings: EngineSettings, emit: Emit) -> None:
        self._settings = settings
        self._emit = emit
        self._num_ahead = 0
        self.info = ModelInfo(
            model=settings.model,
            backend="local",
            architecture="Echo",
            num_parameters=os.getpid(),
            dtype="float32",
            device="cpu",
            num_layers=0,
            kv_bytes_per_token=0,
            max_context_tokens=10,
            cut="any_token",
            cut_detail="",
            tokenizer_id="t",
            namespace="n",
            namespace_fields={},
        )

    def run(self, request: TurnRequest, stop: threading.Event) -> Iterator[TurnEvent]:
        turn_id, text = request.turn_id, request.messages[-1].text
        yield TurnPlanned(turn_id, 0, TokenIds((5, 6, 7)), 0, 0, 3, "cold_start", "")
        if text == "nothing":
            return
        yield TextDelta(turn_id, "so ", False, 1)
        if text == "get ready":
            self._num_ahead = 4
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "raise":
            raise ZeroDivisionError("by design")
        if text == "until stopped":
            while not stop.wait(0.001):
                yield TextDelta(turn_id, "on ", False, 2)
            yield TurnFinished(turn_id, result("so on", "stopped"))
            return
        yield TextDelta(turn_id, text, False, 2)
        yield TurnFinished(turn_id, result(f"so {text}", "stop"))

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        return [CostEstimate(0, 0, len(journal), None) for journal in journals]

    def study(self, question: Question) -> Generator[None, None, Answer]:
        """Quick ones at once. `Tokenize` with the model "slow" takes as many steps as it may."""
        if isinstance(question, Tokenize) and question.model == "slow":
            while not (self._settings.cache_dir / ENOUGH).exists():
                time.sleep(0.001)
                yield
        elif isinstance(question, AskAttention):
            yield
            raise ZeroDivisionError("by design")
        return TokenPieces((), tokenizer=type(question).__name__)

    def prepare(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]:
        text, num_steps = request.turn.messages[-1].text, 0
        if text == "raise":
            raise ZeroDivisionError("by design")
        self._emit(CacheEvent(0.0, "restored", "begun"))
        while is_wanted() and (text == "until cancelled" or num_steps < 3):
            num_steps += 1
            yield
        return Prepared(request.prepare_id, request.kind, 3, 0, 0.0, not is_wanted())

    def spill(self, segment_id: str | None = None) -> int:
        self._emit(CacheEvent(0.0, "spilled", segment_id or "all of it"))
        return 0

    def look_ahead(self) -> bool:
        """A turn that says "get ready" leaves three things to be made ahead; the last one fails."""
        self._num_ahead = max(0, self._num_ahead - 1)
        if self._num_ahead:
            self._emit(CacheEvent(0.0, "restored", f"{self._num_ahead} ahead"))
        if self._num_ahead == 1:
            raise ZeroDivisionError("by design")
        return self._num_ahead > 0

    def forget_deleted(self, *, is_all: bool) -> None:
        self._emit(CacheEvent(0.0, "evicted", "everything" if is_all else "what was deleted"))

    def is_outdated(self) -> bool:
        return (self._settings.cache_dir / OUTDATED).exists()

    def close(self) -> None:
        self._emit(CacheEvent(0.0, "warning", "the last segment did not fit"))
        (self._settings.cache_dir / DRAINED).write_text("yes")


def build(settings: EngineSettings, emit: Emit) -> EchoRunner:
    print("native noise on stdout", flush=True)
    emit(ModelLoading("loading weights", 1, 2))
    if settings.model == "broken":
        raise ModelLoadError("config.json is missing.", "Look for it.")
    if settings.model == "broken once" and not (marker := settings.cache_dir / "tried").exists():
        marker.touch()
        raise ModelLoadError("config.json is missing.")
    if settings.model == "dies":
        count_start(settings.cache_dir)
        os._exit(7)
    if settings.model == "never":
        threading.Event().wait()
    return EchoRunner(settings, emit)


def count_start(directory: Path) -> None:
    with (directory / "starts").open("a") as file:
        file.write("x")


if __name__ == "__main__":
    leave(main(factory=build))
