"""The turn in progress: from the message of the user to the settled answer.

Owns what is running and what waits behind it. A thread reads the turn to its end, so that all of it
is kept even when the program is left. What it has read is shown at the pace of the screen, so that
a fast model cannot flood the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from chatcache.backends.base import PrefillProgress, TextDelta, TurnPlanned, TurnWaiting
from chatcache.chat.chat_turn import ChatTurn
from chatcache.chat.figures import figures_of
from chatcache.chat.views import AnswerSaved, ChatEvent, UserMessageSaved, WaitingForModel
from chatcache.errors import ChatcacheError, ContextFullError
from chatcache.formatting import model_label
from chatcache.frontend.engines import waiting_words
from chatcache.frontend.open_chat import OpenChat
from chatcache.tui.failures import as_user_error
from chatcache.tui.messages import QueueEmptied, RestoreEnded
from chatcache.tui.panel.state import PanelState
from chatcache.tui.parts.chat_view import ChatView
from chatcache.tui.stage import Stage
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.message import UserMessage
from chatcache.tui.widgets.transcript import Transcript

SHOW_SECONDS = 0.04
RATE_SECONDS = 0.4
Kind = Literal["send", "edit", "regenerate", "continue"]
Phase = Literal["starting", "waiting", "reading", "answering", "stopping"]
_PHASE_WORDS: dict[Phase, str] = {
    "starting": "getting ready · Esc stops",
    "waiting": "your message waits · Esc stops",
    "reading": "reading the prompt · Esc stops",
    "answering": "answering · Esc stops",
    "stopping": "stopping",
}


@dataclass
class RunningTurn:
    """One turn while it runs. `ask` begins it, and may block. `events` were read and not shown yet;
    of these `deltas` wait until the end of the transcript is in view."""

    kind: Kind
    ask: Callable[[], ChatTurn]
    user: UserMessage | None = None
    at_turn: int = 0
    events: deque[ChatEvent] = field(default_factory=deque)
    deltas: list[TextDelta] = field(default_factory=list)
    handle: ChatTurn | None = None
    phase: Phase = "starting"
    answer: AnswerMessage | None = None
    is_saved: bool = False
    is_held: bool = False
    rate_told_at: float = 0.0
    saved: AnswerSaved | None = None
    error: ChatcacheError | None = None


class Turns:
    """At most one running turn, and the messages queued behind it."""

    def __init__(
        self,
        stage: Stage,
        chat: OpenChat,
        view: ChatView,
        transcript: Transcript,
        composer: Composer,
        panel: PanelState,
    ) -> None:
        self._stage, self._chat, self._view = stage, chat, view
        self._transcript, self._composer, self._panel = transcript, composer, panel
        self._queue: list[UserMessage] = []
        self._making_room = asyncio.Lock()
        self.running: RunningTurn | None = None

    @property
    def unsaved_texts(self) -> list[str]:
        """The messages that are not on disk yet."""
        running = self.running
        first = [] if running is None or running.is_saved or not running.user else [running.user]
        return [user.text for user in (*first, *self._queue)]

    @property
    def doing(self) -> str:
        """What is going on, in words, and the key that ends it."""
        running = self.running
        if running is None:
            return ""
        words = _PHASE_WORDS[running.phase]
        if (restoring := self._panel.restore_words) and running.phase == "starting":
            words = f"{restoring} · Esc stops"
        if running.is_held and running.phase == "answering":
            words = "answering below · Ctrl+End follows · Esc stops"
        return words + (f" · {len(self._queue)} queued" if self._queue else "")

    # Asking

    def send(self, text: str) -> None:
        """Answer a new message, now or when the running turn has ended."""
        user = UserMessage(0, text, created_at=self._stage.now, now=self._stage.now)
        if self.running is not None:
            user.add_class("-queued")
            self._queue.append(user)
            self._stage.run(self._show_queued(user))
            self._stage.refresh_status()
        else:
            self._begin("send", partial(self._chat.send, text), user)

    async def _show_queued(self, user: UserMessage) -> None:
        """Below the running turn, which may not be in the transcript yet."""
        async with self._making_room:
            if user in self._queue:
                await self._transcript.add(user)

    def edit(self, turn: int, text: str) -> None:
        user = UserMessage(turn, text, created_at=self._stage.now, now=self._stage.now)
        self._begin("edit", partial(self._chat.edit, turn, text), user, at_turn=turn)
        name = self._chat.name
        self._stage.toast(f"What was said stays, as “{name} (before edit)”. /tree shows both.")

    def regenerate(self) -> None:
        self._begin("regenerate", self._chat.regenerate)

    def continue_answer(self) -> None:
        self._begin("continue", self._chat.continue_answer)

    def stop(self) -> bool:
        """Ask the running turn to end; False when there is none."""
        running = self.running
        if running is None:
            return False
        if running.phase != "stopping":
            running.phase = "stopping"
            if running.handle is not None:
                running.handle.stop()
            self._stage.refresh_status()
        return True

    def _begin(
        self,
        kind: Kind,
        ask: Callable[[], ChatTurn],
        user: UserMessage | None = None,
        at_turn: int = 0,
    ) -> None:
        self.running = RunningTurn(kind, ask, user, at_turn)
        self._stage.refresh_status()
        self._stage.run(self._launch(self.running))

    async def _launch(self, running: RunningTurn) -> None:
        try:
            async with self._making_room:
                await self._view.ensure_session()
                await self._make_room(running)
            await self._follow(running)
        except Exception as error:
            running.error = as_user_error(error)
        await self._end(running)

    async def _make_room(self, running: RunningTurn) -> None:
        """Bring the transcript into the shape that the turn will have on disk."""
        if running.kind == "continue":
            answer = self._transcript.last_block(AnswerMessage)
            running.answer = answer if isinstance(answer, AnswerMessage) else None
        elif running.kind == "regenerate":
            await self._transcript.remove_answer_of_last_turn()
        elif running.kind == "edit":
            await self._transcript.remove_from(running.at_turn)
        if running.user is not None and not running.user.is_attached:
            await self._transcript.add(running.user)
        if running.answer is None:
            running.answer = AnswerMessage(
                running.at_turn,
                model=self._panel.model_name,
                created_at=self._stage.now,
                now=self._stage.now,
            )
            await self._transcript.add(running.answer, after=running.user)

    # Following

    async def _follow(self, running: RunningTurn) -> None:
        """Show what comes of the turn until it has ended; raises what it ended with."""
        reading = asyncio.ensure_future(self._stage.ask(_read, running))
        pause, is_read = SHOW_SECONDS, False
        while not is_read:
            await asyncio.wait([reading], timeout=pause)
            is_read = reading.done()  # asked before showing: what comes meanwhile is shown, too
            began = time.monotonic()
            try:
                await self._show_new(running)
            except Exception as failure:  # what cannot be shown is answered and kept all the same
                error = as_user_error(failure)
                await self._stage.show_error(error.message, error.hint)
            # On a slow machine the text comes less often, so that keys have their turn in between.
            pause = max(SHOW_SECONDS, 2 * min(0.5, time.monotonic() - began))
        await reading

    async def _show_new(self, running: RunningTurn) -> None:
        """Show what was read since the last time; text not while the user is reading further up."""
        while running.events:
            event = running.events.popleft()
            if isinstance(event, TextDelta):
                running.deltas.append(event)
            else:
                self._advance(running, event)
        if running.deltas and running.phase not in ("answering", "stopping"):
            self._enter(running, "answering")
        was_held, running.is_held = running.is_held, not self._transcript.is_following
        if was_held != running.is_held:
            self._stage.refresh_status()
        if not running.is_held:
            await self._write(running)

    def _advance(self, running: RunningTurn, event: ChatEvent) -> None:
        """An event other than text."""
        if running.answer is None:
            return
        panel = self._panel
        if isinstance(event, UserMessageSaved):
            self._user_saved(running, event)
        elif isinstance(event, WaitingForModel):
            running.answer.show_waiting("waiting for the model")
            self._enter(running, "waiting")
        elif isinstance(event, TurnWaiting):
            if words := waiting_words(event):
                running.answer.show_waiting(words)
                self._enter(running, "waiting")
        elif isinstance(event, TurnPlanned):
            self._stage.post_message(RestoreEnded())
            panel.begin(event)
            self._enter(running, "reading")
        elif isinstance(event, PrefillProgress):
            panel.advance(event)
            running.answer.show_prefill(event.done, event.total, event.cached)
        elif isinstance(event, AnswerSaved):
            running.saved = event
        self._stage.refresh_panel()

    def show_restore(self, words: str) -> None:
        """Say below the answer that is waited for what it waits for."""
        if self.running is not None and self.running.answer is not None:
            self.running.answer.show_waiting(words)

    def _user_saved(self, running: RunningTurn, event: UserMessageSaved) -> None:
        running.is_saved = True
        self._stage.run(self._view.refresh())
        for block in (running.user, running.answer):
            if block is not None:
                block.turn = event.turn
        if running.user is not None:
            running.user.node_id = event.node_id
            running.user.remove_class("-queued")

    def _enter(self, running: RunningTurn, phase: Phase) -> None:
        if running.phase != "stopping":
            running.phase = phase
        self._stage.refresh_status()

    async def _write(self, running: RunningTurn) -> None:
        deltas, running.deltas = running.deltas, []
        if running.answer is None or not deltas:
            return
        await running.answer.write(deltas)
        num_tokens = deltas[-1].num_tokens
        running.answer.show_waiting(f"writing · {num_tokens:,} tok" if num_tokens else "writing")
        # The panel tells the rate now and then: drawing it costs more than a line of text.
        now = time.monotonic()
        self._panel.decode(num_tokens, now)
        if now - running.rate_told_at >= RATE_SECONDS:
            running.rate_told_at = now
            self._stage.refresh_panel()

    # Ending

    async def _end(self, running: RunningTurn) -> None:
        """Settle the turn. Until that is done it counts as running: what is sent now is queued."""
        try:
            await self._write(running)
            if running.saved is not None:
                await self._settle(running, running.saved)
            else:
                self._panel.finish(None)
            if running.error is not None:
                await self._show_failure(running, running.error)
            await self._view.refresh_last_turn(running.user, running.answer)
            await self._transcript.prune()
        finally:
            self.running = None
            self._stage.post_message(RestoreEnded())
            self._stage.refresh_panel()
            self._stage.refresh_status()
        if running.phase == "stopping" or running.error is not None:
            await self._give_back_queue()
        elif self._queue:
            user = self._queue.pop(0)
            self._begin("send", partial(self._chat.send, user.text), user)
        else:
            self._stage.post_message(QueueEmptied())

    async def _settle(self, running: RunningTurn, saved: AnswerSaved) -> None:
        result = figures_of(saved.result)
        if running.answer is not None:
            if running.kind != "continue":
                await running.answer.settle(saved.result.text, saved.result.reasoning)
            running.answer.turn = saved.turn
            running.answer.name_model(model_label(saved.model, saved.quantization))
            running.answer.node_id = saved.node_id
            running.answer.show_figures(result)
        self._panel.finish(result, saved.turn)
        if saved.remark:
            await self._stage.show_note(saved.remark)

    async def _show_failure(self, running: RunningTurn, error: ChatcacheError) -> None:
        """Say what went wrong. Words that were not accepted go back to where they were written."""
        if running.answer is not None and running.kind != "continue":
            if running.answer.text:
                await running.answer.settle(running.answer.text, running.answer.reasoning)
                running.answer.show_waiting("broken off, /continue goes on")
            else:
                await running.answer.remove()
        if running.user is not None and not running.is_saved:
            if running.user.is_attached:
                await running.user.remove()
            self._composer.give_back(running.user.text)
        hint = error.hint
        if running.is_saved and not (running.answer and running.answer.text):
            is_full = isinstance(error, ContextFullError)
            way_on = "/undo takes it back" if is_full else "/regen answers it"
            hint = f"{hint} Your message is kept; {way_on}.".strip()
        await self._stage.show_error(error.message, hint)

    async def _give_back_queue(self) -> None:
        queued, self._queue = self._queue, []
        for user in queued:
            if user.is_attached:
                await user.remove()
        if queued:
            self._composer.give_back("\n\n".join(user.text for user in queued))


def _read(running: RunningTurn) -> None:
    """Begin the turn and read it to its end; called in a thread."""
    running.handle = running.ask()
    if running.phase == "stopping":
        running.handle.stop()
    for event in running.handle:
        running.events.append(event)
