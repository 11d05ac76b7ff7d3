"""A bench for the terminal UI: real store and service, fake backend, driven by Textual's Pilot."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.frontend.sampling import Sampling
from chatcache.tui.app import ChatCacheApp
from chatcache.tui.screens.chat import ChatScreen
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.message import UserMessage
from chatcache.tui.widgets.notices import Notice
from tests.fakes import FakeBackend

WIDE, NARROW = (120, 36), (80, 24)
LIMIT_SECONDS = 10.0


class Chat:
    """The running application with what tests ask of it."""

    def __init__(self, app: ChatCacheApp, pilot: Pilot[None], bench: Bench) -> None:
        self.app, self.pilot, self.bench = app, pilot, bench

    @property
    def screen(self) -> ChatScreen:
        """The chat screen, also while a dialog is above it."""
        screen = self.app.screen_stack[0]
        assert isinstance(screen, ChatScreen)
        return screen

    @property
    def service(self) -> ChatService:
        return self.screen.parts.chat.service

    async def until(self, is_true: Callable[[], Any]) -> None:
        """Let the application work until something holds."""
        end = time.monotonic() + LIMIT_SECONDS
        while not is_true():
            assert time.monotonic() < end, f"waited in vain; the screen says:\n{self.text}"
            await self.pilot.pause(0.005)
        await self.pilot.pause()

    async def idle(self) -> None:
        """Until the chats are open, no turn runs and nothing works in the background."""
        await self.until(
            lambda: (
                self.screen.is_open
                and not self.screen.is_answering
                and all(worker.is_finished for worker in self.app.workers)
            )
        )

    async def say(self, *texts: str) -> None:
        """Type each text, send it, and wait until all is quiet."""
        for text in texts:
            await self.type(text)
            await self.pilot.press("enter")
            await self.idle()

    async def type(self, text: str) -> None:
        self.screen.composer.set_text(text)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    @property
    def text(self) -> str:
        """What can be read on the terminal."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in lines)

    @property
    def users(self) -> list[str]:
        return [block.text for block in self.screen.query(UserMessage)]

    @property
    def answers(self) -> list[str]:
        return [block.text for block in self.screen.query(AnswerMessage)]

    @property
    def notices(self) -> list[str]:
        return [plain(notice) for notice in self.screen.query(Notice)]

    @property
    def footers(self) -> list[str]:
        return [plain(one) for one in self.screen.query(".footer")]

    @property
    def status(self) -> str:
        return plain(self.screen.query_one("#state"))

    @property
    def title(self) -> str:
        return plain(self.screen.query_one("#breadcrumb"))

    @property
    def toasts(self) -> list[str]:
        return [notification.message for notification in self.app._notifications]


def plain(widget: Widget) -> str:
    """The text of a Static."""
    assert isinstance(widget, Static)
    return str(widget.visual)


class Bench:
    """Makes applications on one store, so that a test can quit and come back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.backend = FakeBackend(starts_ready=True)
        self._services: list[ChatService] = []

    def service(self) -> ChatService:
        service = ChatService(SessionStore(self.directory / "chats.db"), self.backend)
        self._services.append(service)
        return service

    def app(self, desk: Any = None, **options: Any) -> ChatCacheApp:
        backstage = Backstage(self.service(), Sampling(), desk)
        return ChatCacheApp(lambda: backstage, ChatOptions(**options))

    @contextlib.asynccontextmanager
    async def run(
        self, size: tuple[int, int] = WIDE, *, waits: bool = True, desk: Any = None, **options: Any
    ) -> AsyncIterator[Chat]:
        """The application on a service of its own; with `waits`, once all is quiet."""
        app = self.app(desk, **options)
        if not self.backend.is_started:
            self.backend.start()
        async with app.run_test(size=size) as pilot:
            chat = Chat(app, pilot, self)
            if waits:
                await chat.idle()
            yield chat

    def close(self) -> None:
        for service in self._services:
            service.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("TMUX", raising=False)
    time.tzset()
    bench = Bench(tmp_path)
    yield bench
    bench.close()
    assert os.environ["TZ"] == "UTC"
