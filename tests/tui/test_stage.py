"""The parts behind the chat screen on a stage without a screen: they know no more than that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

from chatcache.backends.base import BackendFailed, ModelReady, Prepared, RestoreBegan
from chatcache.errors import UnavailableError, UsageError
from chatcache.frontend.progress import Report
from chatcache.tui import messages
from chatcache.tui.panel.state import PanelState
from chatcache.tui.parts.listening import Listening
from chatcache.tui.parts.long_work import LongWork
from chatcache.tui.stage import Stage
from chatcache.tui.status import BackendStatus
from tests.fakes import fake_model_info


class StoppedTimer(Timer):
    """Never started: the test calls what was to be called."""

    def __init__(self) -> None:
        pass

    def stop(self) -> None:
        pass


class BareStage:
    """Keeps what the parts ask for. `due` is what timers would call."""

    now = 0.0

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.toasts: list[str] = []
        self.due: list[Callable[[], Any]] = []

    async def ask(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(function, *args, **kwargs)

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        raise AssertionError("nothing here runs beside the caller")

    async def push_screen_wait(self, screen: Screen[Any]) -> Any:
        raise AssertionError("nothing here shows a dialog")

    def toast(self, message: str, *, is_warning: bool = False) -> None:
        self.toasts.append(message)

    async def show_note(self, message: str, hint: str = "") -> None: ...

    async def show_error(self, message: str, hint: str = "") -> None: ...

    def refresh_panel(self) -> None: ...

    def refresh_status(self) -> None: ...

    def set_timer(self, delay: float, callback: Callable[[], Any]) -> Timer:
        self.due.append(callback)
        return StoppedTimer()

    def set_interval(self, interval: float, callback: Callable[[], Any]) -> Timer:
        return self.set_timer(interval, callback)

    def post_message(self, message: Message) -> bool:
        self.posted.append(message)
        return True

    @property
    def kinds(self) -> list[type[Message]]:
        return [type(message) for message in self.posted]


def listening(stage: Stage) -> tuple[Listening, PanelState]:
    panel = PanelState()
    return Listening(stage, None, BackendStatus(), panel), panel


def test_a_restore_that_is_soon_over_is_not_worth_a_word() -> None:
    stage = BareStage()
    ears, panel = listening(stage)
    ears.take(RestoreBegan(4096, 1000))
    ears.take(Prepared("a", "restore", 0, 4096, 0.1))
    stage.due.pop()()
    assert panel.restoring is None
    assert stage.posted == []


def test_a_longer_restore_is_told_until_it_has_ended() -> None:
    stage = BareStage()
    ears, panel = listening(stage)
    ears.take(RestoreBegan(4096, 1000))
    stage.due.pop()()
    assert "4,096 tokens" in panel.restore_words
    assert stage.kinds == [messages.RestoreShown]
    ears.restored()
    assert panel.restore_words == ""


@pytest.mark.parametrize("will_restart", [True, False])
def test_a_model_gives_up_only_when_nothing_starts_it_again(will_restart: bool) -> None:
    stage = BareStage()
    ears, panel = listening(stage)
    ears.take(ModelReady(fake_model_info()))
    assert panel.info is not None
    ears.take(BackendFailed(UnavailableError("It broke.", "Mend it."), will_restart=will_restart))
    expected = [messages.ModelBecameReady] + ([] if will_restart else [messages.ModelGaveUp])
    assert stage.kinds == expected


async def test_one_long_work_at_a_time_and_it_can_be_called_off() -> None:
    stage = BareStage()
    work = LongWork(stage)
    has_begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count(report: Report) -> int:
        loop.call_soon_threadsafe(has_begun.set)
        while True:
            report("counting")

    running = asyncio.create_task(work.run("counting", count))
    await has_begun.wait()
    with pytest.raises(UsageError):
        await work.run("counting", count)
    assert work.stop()
    assert await running is None
    assert stage.toasts == ["Called off."]
    assert work.shown is None
    assert not work.stop()
