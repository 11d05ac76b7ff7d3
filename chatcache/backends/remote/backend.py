"""A server as a `Backend`: asks it in a thread of this process, and keeps nothing but the text.

Owns the life of the connection (asked once at the start, so that what is wrong is said before
anything is typed), the turn in progress and its stop, and the second tries that are safe: before
the first word of an answer, when the server itself says when to come back, or what it wants
otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from chatcache.backends.questions import Answer, Question
from chatcache.backends.remote.answer import ServerAnswer
from chatcache.backends.remote.client import ServerClient
from chatcache.backends.remote.continuation import BeganAnewError
from chatcache.backends.remote.dialect import Dialect
from chatcache.backends.remote.endings import began_anew, ending_problem, ending_remark
from chatcache.backends.remote.explanation import explain
from chatcache.backends.remote.failures import SilentServerError
from chatcache.backends.remote.info import choose_model, model_info
from chatcache.backends.remote.lessons import Lessons
from chatcache.backends.remote.listing import ServerModel
from chatcache.backends.remote.loop import EventLoop
from chatcache.backends.remote.messages import is_continued
from chatcache.backends.remote.refusal import Refusal, RefusedError, is_about_messages
from chatcache.backends.remote.request import body_of, chosen_fields
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import plural
from chatcache.remotes import RemoteModel, check_reach
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

MAX_TRIES = 3
MAX_LESSONS = 12  # of one turn: a server that always wants something else is left alone
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


@dataclass(slots=True)
class _Tries:
    """What has been tried for one turn. `is_as_one`: the chat is told in one message."""

    num_busy: int = 1
    num_lessons: int = 0
    is_as_one: bool = False


class RemoteBackend(BackendLife):
    """A `Backend` on a model of a server. Nothing is asked before `start`. `lessons`: the file in
    which it is kept how servers want to be asked."""

    def __init__(
        self, remote: RemoteModel, *, is_offline: bool = False, lessons: Path | None = None
    ) -> None:
        super().__init__()
        self._lessons = Lessons(lessons)
        self._remote = remote
        self._is_offline = is_offline
        self._loop = EventLoop(f"remote-{remote.profile.name}")
        self._client: ServerClient | None = None
        self._key: str | None = None
        self._offered: list[ServerModel] = []
        self._dialect = Dialect()
        self._kept: dict[str, Any] = {}
        self._reasoning_key = ""  # where the server puts reasoning
        self._has_told_as_one = False
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
        self._dialect.recall(self._lessons.recall(self._server_key))
        self._kept = self._dialect.lessons()
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
            if refusal.status in (401, 403, 407) or 300 <= refusal.status < 400 or is_loading:
                raise explain(refusal, self._remote, self._key, proxy=client.proxy)
            return []  # it may answer all the same

    # Turns

    def ask(self, request: TurnRequest) -> TurnStream:
        """Begin a turn. A stop closes the connection, so the server ends too."""
        stream = TurnStream(lambda: cancel())
        answer = ServerAnswer(request, self._remote, time.monotonic(), self._dialect)
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
        """Have the answer arrive. What the server refuses is taken into account, and it is asked
        again, until the first word has come."""
        client, request, stream = await self._connected(), exchange.request, exchange.stream
        tries = _Tries()
        exchange.answer = ServerAnswer(request, self._remote, time.monotonic(), self._dialect)
        stream.put(exchange.answer.planned())
        while True:
            body = self._body(request, tries)
            try:
                async with aclosing(client.answer(body)) as pieces:
                    async for arrived in pieces:
                        for event in exchange.answer.take(*arrived):
                            stream.put(event)
                return
            except RefusedError as error:
                wait = None
                if not exchange.answer.is_begun:
                    wait = self._next_try(exchange, tries, error.refusal, body)
                if wait is None:
                    raise
                await asyncio.sleep(wait)
            exchange.answer = ServerAnswer(request, self._remote, time.monotonic(), self._dialect)

    def _body(self, request: TurnRequest, tries: _Tries) -> dict[str, Any]:
        return body_of(request, self._remote.model or "", self._dialect, as_one=tries.is_as_one)

    def _next_try(
        self, exchange: _Exchange, tries: _Tries, refusal: Refusal, body: dict[str, Any]
    ) -> float | None:
        """In how many seconds the server is asked again; None: not any more."""
        tries.num_lessons += 1
        if tries.num_lessons <= MAX_LESSONS and self._learn(exchange, tries, refusal, body):
            return 0.0
        can_be_one = len(body["messages"]) > 1 and not is_continued(exchange.request)
        if can_be_one and not tries.is_as_one and is_about_messages(refusal):
            tries.is_as_one = True
            host = self._remote.profile.host
            if not self._has_told_as_one:
                self._has_told_as_one = True
                self._say(
                    f"{host} does not take the turns of a chat apart; they go as one message."
                )
            return 0.0
        wait = _wait_seconds(refusal, tries.num_busy)
        if wait is not None:
            tries.num_busy += 1
            self._say_busy(wait)
        return wait

    def _learn(
        self, exchange: _Exchange, tries: _Tries, refusal: Refusal, body: dict[str, Any]
    ) -> bool:
        """Take a refusal into account. True when the request would be another one now."""
        request, heard = exchange.request, exchange.answer.reasoning_key or self._reasoning_key
        chosen = chosen_fields(request, self._dialect)
        while self._dialect.learn(refusal, body, chosen, heard):
            if self._body(request, tries) != body:
                return True
        return False

    def _remember(self, answer: ServerAnswer) -> None:
        """What an answer has shown of its server, for the turns after it."""
        self._reasoning_key = answer.reasoning_key or self._reasoning_key
        if answer.thinks_unopened is not None:
            if answer.thinks_unopened and not self._dialect.thinks_unopened:
                self._say(
                    f"{self._remote.profile.host} sends thoughts without a mark in front of them;"
                    " from the next answer on they are told apart at once."
                )
            self._dialect.thinks_unopened = answer.thinks_unopened
        if answer.is_begun and (lessons := self._dialect.lessons()) != self._kept:
            self._lessons.keep(self._server_key, lessons)
            self._kept = lessons

    @property
    def _server_key(self) -> str:
        return f"{self._remote.profile.api_url} {self._remote.model or ''}".strip()

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
        host = self._remote.profile.host
        error: BaseException | None = None if task.cancelled() else task.exception()
        is_whole = error is None and not task.cancelled() and answer.is_finished
        for delta in answer.finish(is_whole=is_whole):
            stream.put(delta)
        self._remember(answer)
        if task.cancelled():
            stream.end(TurnFinished(turn_id, answer.result(is_stopped=True)))
            return
        if isinstance(error, RefusedError):
            error = self._explained(error.refusal, exchange)
        elif isinstance(error, BeganAnewError):
            stream.end(TurnFailed(turn_id, began_anew(host)))
            return
        elif error is None:
            error = ending_problem(host, answer)
        if error is None:
            if remark := ending_remark(host, answer):
                self._say(remark)
            stream.end(TurnFinished(turn_id, answer.result()))
            return
        if not isinstance(error, ChatcacheError):
            log.error("a turn failed", exc_info=error)
        problem = error if isinstance(error, Exception) else RuntimeError(repr(error))
        stream.end(TurnFailed(turn_id, problem, _partial(answer)))

    def _explained(self, refusal: Refusal, exchange: _Exchange) -> ChatcacheError:
        return explain(
            refusal,
            self._remote,
            self._key,
            [model.name for model in self._offered],
            self._client.proxy if self._client is not None else None,
            is_continued=is_continued(exchange.request),
            has_begun=exchange.answer.is_begun,
        )

    def _say_busy(self, seconds: float) -> None:
        host, when = self._remote.profile.host, plural(round(seconds), "second")
        self._say(f"{host} is busy; it is asked again in {when}.")

    def _say(self, words: str) -> None:
        self._listeners.tell(CacheEvent(time.time(), "warning", words))

    # What a server keeps, it keeps by itself

    def estimate(self, journals: Sequence[TokenIds]) -> list[CostEstimate]:
        """All is read by the server; how long that takes, nobody here knows."""
        return [CostEstimate(0, 0, len(journal), None) for journal in journals]

    def study(self, question: Question, timeout: float | None = None) -> Answer:
        raise UnavailableError(
            f"{self._remote.profile.host} keeps its model and its cache to itself.",
            "What it says of them is in the figures of each turn; a local model shows the rest.",
        )

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


def _wait_seconds(refusal: Refusal, num_tries: int) -> float | None:
    """How long to wait for another try; None when there is to be none."""
    wait = refusal.retry_after
    if refusal.status not in BUSY or wait is None or wait > MAX_WAIT_SECONDS:
        return None
    return wait if num_tries < MAX_TRIES else None
