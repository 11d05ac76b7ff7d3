"""The conversation as it scrolls by. Keeps a window of the path mounted, follows the end.

Knows messages and where the window begins; loading earlier turns is asked of the screen.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.events import Click
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from chatcache.formatting import plural
from chatcache.tui.widgets.message import MessageBlock, SystemMessage, UserMessage
from chatcache.tui.widgets.notices import Welcome

WINDOW_TURNS = 20
PRUNE_ABOVE_BLOCKS = 120
KEEP_BLOCKS = 60
# So many messages are enough for a screen; those above them follow after the first paint.
FIRST_WIDGETS = 6


class EarlierTurns(Static):
    """Stands for what is not mounted; a click or Ctrl+Home loads the next piece."""

    class Asked(Message):
        """Earlier turns were asked for."""

    def __init__(self, number: int) -> None:
        super().__init__(f"↑ {plural(number, 'earlier turn')} · Ctrl+Home loads more", markup=False)

    def on_click(self, event: Click) -> None:
        event.stop()
        self.post_message(self.Asked())


class Transcript(VerticalScroll, can_focus=False):
    """The messages of the path, oldest first."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._above: list[Widget] = []

    def on_mount(self) -> None:
        self.anchor()

    @property
    def is_following(self) -> bool:
        """Is the end in view? Anchored content that fits the view may have a negative offset."""
        return self.max_scroll_y <= 0 or round(self.scroll_y) >= self.max_scroll_y

    @property
    def blocks(self) -> list[MessageBlock]:
        return [child for child in self.children if isinstance(child, MessageBlock)]

    @property
    def first_turn(self) -> int:
        """The first turn in the window; 0 when there is none."""
        return next((block.turn for block in self.blocks if block.turn > 0), 0)

    def last_block(self, kind: type[MessageBlock]) -> MessageBlock | None:
        return next((block for block in reversed(self.blocks) if isinstance(block, kind)), None)

    def user_message(self, turn: int) -> UserMessage | None:
        blocks = (block for block in self.blocks if block.turn == turn)
        return next((block for block in blocks if isinstance(block, UserMessage)), None)

    @property
    def focused_block(self) -> MessageBlock | None:
        focused = self.screen.focused
        return focused if isinstance(focused, MessageBlock) else None

    # What is shown

    async def show_blocks(self, blocks: Sequence[MessageBlock]) -> None:
        """Replace everything by the messages of a path (its end, if it is long)."""
        self._above = []
        widgets = self._with_earlier(blocks)
        with self.app.batch_update():
            await self.remove_children()
            await self.mount_all(widgets[-FIRST_WIDGETS:])
        self.anchor()
        self._above = widgets[:-FIRST_WIDGETS]

    async def fill_up(self) -> None:
        """Mount what is above the end that `show_blocks` has shown, piece by piece, so that keys
        and the first paint do not wait for it."""
        above = self._above
        while above and above is self._above:
            piece = above[-FIRST_WIDGETS:]
            del above[-FIRST_WIDGETS:]
            await self.mount_all(piece, before=0)

    @property
    def is_filling(self) -> bool:
        """Is a part of what was to be shown not there yet?"""
        return bool(self._above)

    async def show_welcome(self, welcome: Welcome) -> None:
        self._above = []
        with self.app.batch_update():
            await self.remove_children()
            await self.mount(welcome)

    async def prepend(self, earlier: Sequence[MessageBlock]) -> None:
        """Put earlier messages above the window; what is in view stays where it is."""
        before, top = self.virtual_size.height, self.scroll_y
        await self.query(EarlierTurns).remove()
        system = [block for block in self.blocks if isinstance(block, SystemMessage)]
        blocks = [block for block in earlier if block.turn > 0 or not system]
        await self.mount_all(self._with_earlier(blocks), before=0)
        self.release_anchor()

        def keep_place() -> None:
            self.scroll_to(y=top + self.virtual_size.height - before, animate=False)

        self.call_after_refresh(keep_place)

    async def add(self, widget: Widget, after: Widget | None = None) -> None:
        """Append a message or a notice (or put it behind another one), and follow."""
        await self.query(Welcome).remove()
        await self.mount(widget, after=after)
        self.anchor()

    async def remove_from(self, turn: int) -> None:
        """Take away a turn and all that follows it."""
        children = list(self.children)
        first = next((block for block in self.blocks if block.turn >= turn > 0), None)
        if first is not None:
            await self.remove_children(children[children.index(first) :])

    async def remove_answer_of_last_turn(self) -> None:
        """Take away what stands below the last message of the user."""
        children = list(self.children)
        last = max((i for i, w in enumerate(children) if isinstance(w, UserMessage)), default=None)
        if last is not None:
            await self.remove_children(children[last + 1 :])

    async def prune(self) -> None:
        """Unmount the oldest messages of a long sitting; they can be loaded again."""
        blocks = [block for block in self.blocks if block.turn > 0]
        if len(blocks) <= PRUNE_ABOVE_BLOCKS or not self.is_following:
            return
        first_kept = blocks[-KEEP_BLOCKS].turn
        with self.app.batch_update():
            await self.query(EarlierTurns).remove()
            await self.remove_children(
                [child for child in self.children if _is_before(child, first_kept)]
            )
            await self.mount(EarlierTurns(first_kept - 1), before=0)

    def _with_earlier(self, blocks: Sequence[MessageBlock]) -> list[Widget]:
        first = next((block.turn for block in blocks if block.turn > 0), 1)
        return [EarlierTurns(first - 1), *blocks] if first > 1 else [*blocks]

    # Walking

    def walk(self, step: int) -> bool:
        """Move the focus one message up or down, from the end; False behind the last one,
        and where there is none."""
        blocks = self.blocks
        focused = self.screen.focused
        if isinstance(focused, MessageBlock) and focused in blocks:
            index = blocks.index(focused) + step
        else:
            index = len(blocks) - 1 if step < 0 else len(blocks)
        if not blocks or index >= len(blocks):
            return False
        blocks[max(0, index)].focus()
        return True


def _is_before(child: Widget, turn: int) -> bool:
    return not isinstance(child, MessageBlock) or child.turn < turn
