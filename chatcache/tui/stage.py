"""What the parts behind the chat screen ask of it, so that none of them knows the screen itself.

The screen implements it. Whatever else a part uses it is given by its constructor, and what it has
to tell beyond that it posts as a message.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

Args = ParamSpec("Args")
Result = TypeVar("Result")
# What a command does; it gets the words behind the command.
Handler = Callable[[str], Coroutine[Any, Any, None]]


class Stage(Protocol):
    """Belongs to the thread of the message loop; only `post_message` may be called from others."""

    @property
    def now(self) -> float:
        """Unix time, by the clock of the program."""

    async def ask(
        self, function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        """Call something that may block, in a thread."""

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine beside the message loop; what goes wrong is shown in the transcript."""

    async def push_screen_wait(self, screen: Screen[Result]) -> Result:
        """Show a dialog; what it returns. Only within `run`."""

    def toast(self, message: str, *, is_warning: bool = False) -> None: ...

    async def show_note(self, message: str, hint: str = "") -> None:
        """Put a line of the program into the transcript."""

    async def show_error(self, message: str, hint: str = "") -> None: ...

    def refresh_panel(self) -> None: ...

    def refresh_status(self) -> None: ...

    def set_timer(self, delay: float, callback: Callable[[], Any]) -> Timer: ...

    def set_interval(self, interval: float, callback: Callable[[], Any]) -> Timer: ...

    def post_message(self, message: Message) -> bool: ...
