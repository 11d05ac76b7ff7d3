"""A server as a `Backend`: asks it in a thread of this process, and keeps nothing but the text.

Owns the life of the connection (asked once at the start, so that what is wrong is said before
anything is typed), the turn in progress and its stop, and the second tries that are safe: before
the first piece of an answer, when the server itself says when to come back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CostEstimate,
    ModelInfo,
    ModelLoading,
    ModelReady,
    Prepare,
    TurnFailed,
    TurnFinished,
    TurnRequest,
    TurnResult,
    TurnStream,
)
from chatcache.backends.life import BackendLife, closed_error
from chatcache.backends.remote.answer import ServerAnswer
from chatcache.backends.remote.client import ServerClient, SilentServerError
from chatcache.backends.remote.info import choose_model, model_info
from chatcache.backends.remote.listing import ServerModel
from chatcache.backends.remote.loop import EventLoop
from chatcache.backends.remote.refusal import Refusal, RefusedError, explain
from chatcache.backends.remote.request import Dialect, body_of
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import plural
from chatcache.remotes import RemoteModel, check_reach
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

MAX_TRIES = 3
MAX_WAIT_SECONDS = 60.0
LOADING_SECONDS = 600.0
LOADING_POLL_SECONDS = 1.0
BUSY = (429, 503)


@dataclass(slots=True)
class _Exchange:
    """A turn that was asked, and what has come of it."""

    request: TurnRequest
    stream: TurnStream
    answer: ServerAnswer


class RemoteBackend(BackendLife):
    """A `Backend` on a model of a server. Nothing is asked before `start`."""

    def __init__(self, remote: RemoteModel, *, is_offline: bool = False) -> None:
        super().__init__()
        self._remote = remote
        self._is_offline = is_offline
        self._loop = EventLoop(f"remote-{remote.profile.name}")
        self._client: ServerClient | None = None
        self._key: str | None = None
        self._offered: list[ServerModel] = []
        self._dialect = Dialect()
        self._starting: Future[None] | None = None

    # Starting

    def start(self) -> None:
        """Ask the server for its models; returns at once. Does nothing when that was done."""
        with self._changed:
            if self._state in ("idle", "failed"):
                self._state, self._error = "loading", None
                self._starting = self._loop.submit(self._start())

    async def _start(self) -> None:
        self._listeners.tell(ModelLoading(f"asking {self._remote.profile.host}"))
        event: BackendEvent
        try:
            info = await self._connect()
        except Exception as error:
            if not isinstance(error, ChatcacheError):
                log.exception("the server could not be asked")
            event = BackendFailed(error)
        else:
            event = ModelReady(info)
        with self._changed:
            if self._state != "loading":
                return
            if isinstance(event, ModelReady):
                self._state, self._info = "ready", event.info
            else:
                self._state, self._error = "failed", event.error
            self._changed.notify_all()
        self._listeners.tell(event)

    async def _connect(self) -> ModelInfo:
        profile = self._remote.profile
        check_reach(profile, is_offline=self._is_offline)
        if self._client is None:
            self._key = profile.key()
            self._client = ServerClient(profile, self._key)
        self._offered = await self._list(self._client)
        self._remote, chosen = choose_model(self._remote, self._offered)
        self._dialect.owner = chosen.owner
        return model_info(self._remote, chosen)

    async def _list(self, client: ServerClient) -> list[ServerModel]:
        """What the server offers; [] where it does not tell. Waits for one that is loading."""
        deadline = time.monotonic() + LOADING_SECONDS
        while True:
            try:
                return await client.models()
            except SilentServerError:
                return []  # a server that works for others may answer a turn all the same
            except RefusedError as error:
                refusal = error.refusal
            is_loading = refusal.status == 503 and "loading" in refusal.message.lower()
            if is_loading and time.monotonic() < deadline:
                self._listeners.tell(
                    ModelLoading(f"{self._remote.profile.host} is loading its model")
                )
                await asyncio.sleep(LOADING_POLL_SECONDS)
                continue
            if refusal.status in (401, 403) or 300 <= refusal.status < 400 or is_loading:
                raise explain(refusal, self._remote, self._key)
            return []  # it may answer all the same

    # Turns

    def ask(self, request: TurnRequest) -> TurnStream:
        """Begin a turn. A stop closes the connection, so the server ends too."""
        stream = TurnStream(lambda: cancel())
        answer = ServerAnswer(request, self._remote, time.monotonic())
        exchange = _Exchange(request, stream, answer)
        with self._changed:
            if self._state == "closed":
                stream.end(TurnFailed(request.turn_id, closed_error()))
                return stream
            if self._state == "idle":
                self.start()
            cancel = self._loop.begin(
                self._converse(exchange), lambda task: self._end(exchange, task)
            )
        return stream

    async def _converse(self, exchange: _Exchange) -> None:
        """Have the answer arrive. What the server refuses of our own fields is left out."""
        client, request, stream = await self._connected(), exchange.request, exchange.stream
        exchange.answer = answer = ServerAnswer(request, self._remote, time.monotonic())
        stream.put(answer.planned())
        num_tries, has_begun = 1, False
        while True:
            body = body_of(request, self._remote.model or "", self._dialect)
            try:
                async for arrived in client.answer(body):
                    has_begun = True
                    for event in answer.take(*arrived):
                        stream.put(event)
            except RefusedError as error:
                if has_begun:
                    raise
                if self._dialect.learn(error.refusal):
                    continue
                wait = _wait_seconds(error.refusal, num_tries)
                if wait is None:
                    raise
                num_tries += 1
                self._say_busy(wait)
                await asyncio.sleep(wait)
            else:
                return

    async def _connected(self) -> ServerClient:
        """The connection, once the server has told its models. Raises what went wrong."""
        if self._starting is not None:
            await asyncio.shield(asyncio.wrap_future(self._starting))
        if self._state != "ready" or self._client is None:
            raise self._error or closed_error()
        return self._client

    def _end(self, exchange: _Exchange, task: asyncio.Task[None]) -> None:
        """Put the last event: stopped, refused, broken off, or as the server said."""
        turn_id, answer, stream = exchange.request.turn_id, exchange.answer, exchange.stream
        for delta in answer.finish():
            stream.put(delta)
        if task.cancelled():
            stream.end(TurnFinished(turn_id, answer.result(is_stopped=True)))
            return
        error: BaseException | None = task.exception()
        if isinstance(error, RefusedError):
            names = [model.name for model in self._offered]
            error = explain(error.refusal, self._remote, self._key, names)
        elif error is None and not answer.is_finished:
            error = _unfinished(self._remote.profile.host, answer)
        if error is None:
            stream.end(TurnFinished(turn_id, answer.result()))
            return
        if not isinstance(error, ChatcacheError):
            log.error("a turn failed", exc_info=error)
        problem = error if isinstance(error, Exception) else RuntimeError(repr(error))
        stream.end(TurnFailed(turn_id, problem, _partial(answer)))

    def _say_busy(self, seconds: float) -> None:
        host, when = self._remote.profile.host, plural(round(seconds), "second")
        self._listeners.tell(
            CacheEvent(time.time(), "warning", f"{host} is busy; it is asked again in {when}.")
        )

    # What a server keeps, it keeps by itself

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """All is read by the server; how long that takes, nobody here knows."""
        return [CostEstimate(0, 0, len(journal), None) for journal in journals]

    def prepare(self, request: Prepare) -> bool:
        return False

    def cancel_prepare(self) -> None:
        return

    def spill(self, segment_id: str | None = None) -> bool:
        return False

    def close(self) -> None:
        """End what is being asked, and the connection. May be called again."""
        with self._changed:
            is_first = self._state != "closed"
            self._state, self._error = "closed", None
            self._changed.notify_all()
        if is_first:
            self._loop.close(self._client.close() if self._client is not None else None)


def _partial(answer: ServerAnswer) -> TurnResult | None:
    """What had come when a turn failed; None when that was nothing."""
    return answer.result(is_stopped=True) if answer.is_begun else None


def _unfinished(host: str, answer: ServerAnswer) -> UnavailableError:
    """The server ended, and did not say that this was all."""
    if answer.is_begun:
        return UnavailableError(
            f"{host} ended in the middle of the answer.", "What was written is kept."
        )
    return UnavailableError(
        f"{host} ended without an answer.",
        "Its log may tell why; often the conversation is too long for its model.",
    )


def _wait_seconds(refusal: Refusal, num_tries: int) -> float | None:
    """How long to wait for another try; None when there is to be none."""
    wait = refusal.retry_after
    if refusal.status not in BUSY or wait is None or wait > MAX_WAIT_SECONDS:
        return None
    return wait if num_tries < MAX_TRIES else None
