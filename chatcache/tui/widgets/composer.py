"""Where the user writes. Enter sends, Ctrl+J adds a line, a slash opens the command list.

Owns the text until it is given away, which of it was typed, the turn that is being edited, the
recall of earlier messages, and pasted text that is too long to look at (a placeholder stands for it
until it is sent).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported
from textual.events import Key, Paste, Resize
from textual.message import Message
from textual.widgets import TextArea

from chatcache.errors import UsageError
from chatcache.formatting import clean, plural
from chatcache.frontend.registry import Call, Prompt, Unknown, matching, parse
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import fitting
from chatcache.tui.messages import CommandChosen, FilesWanted, PromptRefused, PromptSubmitted
from chatcache.tui.widgets.command_popup import (
    CommandPopup,
    Offer,
    command_offers,
    file_offers,
)
from chatcache.tui.widgets.earlier import EarlierTexts
from chatcache.tui.widgets.fields import TextField

if TYPE_CHECKING:
    from chatcache.frontend.files import Attachment

_PLACEHOLDERS = (
    "Say something. Enter sends, Ctrl+J adds a line, / lists the commands",
    "Say something. Enter sends, / lists the commands",
    "Say something. / for commands",
)
PASTE_LINES = 12
PASTE_CHARACTERS = 2_000
# Of a text that comes back (recalled, a draft, to be edited) more than this is held back, too.
HELD_CHARACTERS = 20_000
_COMMAND_START = re.compile(r"/([A-Za-z]*)\Z")
_FILE_START = re.compile(r"(?:^|\s)@([^\s@]*)$")
_MAX_OFFERS = 50
_FILE_SECONDS = 2.0


class Composer(TextField):
    """A text area that sends."""

    BINDINGS = bindings("composer")

    class Edited(Message):
        """The user changed the text."""

    def __init__(self, popup: CommandPopup) -> None:
        super().__init__(id="composer", placeholder=_PLACEHOLDERS[0], highlight_cursor_line=False)
        self._popup = popup
        self._pastes: dict[str, str] = {}
        self._num_pastes = 0
        self._given_text = ""
        self._foreign_start = ""  # the first word, where it was not typed
        self._set_aside = ""  # what was written before a turn was edited
        self._original = ""
        self.editing_turn: int | None = None
        self.recall = EarlierTexts()
        self._has_files = asyncio.Event()  # not while one that was asked for is being read
        self._has_files.set()
        self._files: Sequence[str] | None = None

    def on_mount(self) -> None:
        self.cursor_blink = self.app.animation_level != "none"

    def on_resize(self, event: Resize) -> None:
        self.placeholder = fitting(_PLACEHOLDERS, event.size.width - 1)

    # Text

    @property
    def full_text(self) -> str:
        """The text with every placeholder replaced by what was pasted."""
        return self._expand(self.text)

    @property
    def draft(self) -> str:
        """Everything that is written here and would be lost with it."""
        text = self.full_text
        is_as_it_was = self.editing_turn is not None and text == self._original
        return "\n\n".join(part for part in (self._set_aside, "" if is_as_it_was else text) if part)

    def _expand(self, text: str) -> str:
        for placeholder, pasted in self._pastes.items():
            text = text.replace(placeholder, pasted)
        return text

    def meant(self) -> Prompt | Call | Unknown:
        """What the text is: a message, or a command if that was typed."""
        start = self._foreign_start
        is_typed = not (start and self.text.lstrip().startswith(start))
        return parse(self.text, self._expand, is_typed=is_typed)

    def set_text(self, text: str, *, is_message: bool = False) -> None:
        """Replace the text and put the cursor behind it. Opens no command list. What `is_message`
        is one also where it begins like a command."""
        text = clean(text)
        self._foreign_start = _first_word(text) if is_message else ""
        if len(text) > HELD_CHARACTERS:
            text = self._hold(text)
        self._given_text = text
        self.load_text(text)
        self.move_cursor(self.document.end)

    def give_back(self, text: str) -> None:
        """Put words that were not sent back where they were written."""
        written = self.full_text
        self.set_text(f"{text}\n\n{written}" if written.strip() else text, is_message=True)

    def clear_text(self) -> bool:
        """Empty it by hand, so that Ctrl+Z brings the text back; False when it was empty."""
        if not self.text:
            return False
        self.clear()
        self.recall.restart()
        return True

    def reset(self) -> None:
        self.load_text("")
        self._pastes.clear()
        self._foreign_start = ""
        self.recall.restart()

    # Keys

    async def _on_key(self, event: Key) -> None:
        """Keys that edit run their binding here, in turn with the text typed before and after
        them. Anywhere else it would overtake that on a busy machine and send half, or be overtaken
        and delete what came later."""
        with contextlib.suppress(TimeoutError):  # what is typed behind a file stands behind it
            await asyncio.wait_for(self._has_files.wait(), _FILE_SECONDS)
        active = self.screen.active_bindings.get(event.key)
        if active is None or active.node is not self:
            return
        if await self.app.run_action(active.binding.action, self):
            event.stop()
            event.prevent_default()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "complete":
            return self._popup.is_open
        return True

    def action_submit(self) -> None:
        """Give the text away, in one step: what is typed next is the beginning of another one."""
        self._refresh_popup()
        offer, suggested = None, None
        if self._popup.is_open:
            offer, suggested = self._popup.chosen, self._popup.suggested
        self._popup.close()
        if offer is not None and (offer.command is None or offer.command.needs_argument):
            self._take(offer)
            return
        meant = parse(offer.text) if offer is not None else self.meant()
        if isinstance(meant, Unknown) and suggested is not None and self._begins(suggested):
            self._take(suggested)  # completed, and not done: nobody chose it
        elif isinstance(meant, Unknown):
            self.post_message(PromptRefused(meant.message, meant.hint))
        elif isinstance(meant, Call):
            self.reset()
            self._ask_for(meant.command.id, meant.argument)
        elif text := meant.text.strip("\n"):
            self._send(text)

    def _ask_for(self, command_id: str, argument: str) -> None:
        if command_id == "attach":
            self._has_files.clear()
        # Not by way of our own queue, which stands still until the file is here.
        self.screen.post_message(CommandChosen(command_id, argument, is_typed=not self.text))

    def file_ended(self) -> None:
        """The file that was asked for is here, or will not come."""
        self._has_files.set()

    def _begins(self, offer: Offer) -> bool:
        return offer.text.startswith(self.text.lower())

    def _send(self, text: str) -> None:
        if not text.strip():
            return
        turn = self.end_editing()
        if turn is None:
            self.reset()
        self.recall.add(text)
        self.post_message(PromptSubmitted(text, turn))

    def begin_editing(self, turn: int, text: str) -> None:
        """Change an earlier message here. What was written so far comes back afterwards."""
        if self.editing_turn is None:
            self._set_aside = self.full_text
        self.editing_turn, self._original = turn, text
        self.add_class("-editing")
        self.border_title = f"editing turn {turn} · the original stays · Esc cancels"
        self.set_text(text, is_message=True)

    def end_editing(self) -> int | None:
        """The turn that was being edited; None when there was none."""
        turn, self.editing_turn = self.editing_turn, None
        if turn is not None:
            aside, self._set_aside = self._set_aside, ""
            self.remove_class("-editing")
            self.border_title = None
            self.reset()
            if aside:
                self.set_text(aside)
        return turn

    def action_newline(self) -> None:
        self._replace_via_keyboard("\n", *self.selection)

    def action_complete(self) -> None:
        self._refresh_popup()
        if self._popup.is_open and (offer := self._popup.suggested):
            self._popup.close()
            self._take(offer)

    def _take(self, offer: Offer) -> None:
        """Complete a command; a directory further down; a file as what stands for its text."""
        if offer.command is not None:
            self.set_text(offer.text)
            return
        start = self._before_cursor.rfind("@")
        row, column = self.cursor_location
        if offer.text.endswith("/"):
            self._replace_via_keyboard(f"@{offer.text}", (row, start), (row, column))
        else:
            self._replace_via_keyboard("", (row, start), (row, column))
            self._ask_for("attach", offer.text)

    def attach(self, attachment: Attachment) -> None:
        """Put a file at the cursor: what stands for it is expanded when the message is sent."""
        number, placeholder = 1, attachment.placeholder
        while self._pastes.get(placeholder, attachment.quoted) != attachment.quoted:
            number += 1
            placeholder = attachment.placeholder.replace("[file", f"[file {number}:", 1)
        self._pastes[placeholder] = attachment.quoted
        before = self._before_cursor
        gap = " " if before and not before[-1].isspace() else ""
        self._given_text = ""
        if result := self._replace_via_keyboard(f"{gap}{placeholder} ", *self.selection):
            self.move_cursor(result.end_location)

    @property
    def _before_cursor(self) -> str:
        """The text of the line up to the cursor."""
        row, column = self.cursor_location
        return self.document.get_line(row)[:column]

    def action_cursor_up(self, select: bool = False) -> None:
        if self._popup.is_open:
            self._popup.move(-1)
        elif not select and self._is_on_first_row and self.recall.texts:
            self.action_previous()
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if self._popup.is_open:
            self._popup.move(1)
        elif not select and self.recall.is_walking and self._is_on_last_row:
            self.action_next()
        else:
            super().action_cursor_down(select)

    @property
    def _is_on_first_row(self) -> bool:
        return self.wrapped_document.location_to_offset(self.cursor_location).y == 0

    @property
    def _is_on_last_row(self) -> bool:
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        return row >= self.wrapped_document.height - 1

    # Other texts in its place

    def action_previous(self) -> None:
        if (text := self.recall.earlier(self.full_text)) is not None:
            self.set_text(text, is_message=True)
            self.move_cursor((0, 0))

    def action_next(self) -> None:
        if (text := self.recall.later()) is not None:
            self.set_text(text, is_message=self.recall.is_walking)

    def take_earlier(self, text: str) -> None:
        """A message from the list of all; Up brings back what was written here."""
        if written := self.full_text.strip("\n"):
            self.recall.add(written)
        self.set_text(text, is_message=True)

    def edit_outside(self) -> None:
        """Let the user write in $VISUAL or $EDITOR, and take what was saved."""
        from chatcache.frontend.editor import edit_text

        try:
            with self.app.suspend():
                text = edit_text(self.full_text)
        except SuspendNotSupported:
            raise UsageError("This terminal cannot be lent to an editor.", "") from None
        self.set_text(text)

    # Pasting

    def _hold(self, text: str) -> str:
        """Keep a long text aside until it is sent; returns the placeholder that stands for it."""
        self._num_pastes += 1
        num_lines = text.count("\n") + 1
        length = plural(num_lines, "line") if num_lines > 1 else plural(len(text), "character")
        placeholder = f"[paste {self._num_pastes}: {length}]"
        self._pastes[placeholder] = text
        return placeholder

    async def _on_paste(self, event: Paste) -> None:
        event.stop()
        event.prevent_default()
        text = clean(event.text)
        num_lines = text.count("\n") + 1
        if num_lines > PASTE_LINES or len(text) > PASTE_CHARACTERS:
            text = self._hold(text)
        if not self.document.get_text_range((0, 0), min(self.selection)).strip():
            self._foreign_start = _first_word(text)
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)

    def action_delete_left(self) -> None:
        """Backspace takes a whole placeholder: half of one would stand for nothing."""
        row, column = self.cursor_location
        for placeholder in self._pastes:
            if self.selection.is_empty and self._before_cursor.endswith(placeholder):
                self.delete((row, column - len(placeholder)), (row, column))
                return
        super().action_delete_left()

    # The command list

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        is_typed = self.text != self._given_text
        self._given_text = ""
        if not self.text.lstrip().startswith(self._foreign_start):
            self._foreign_start = ""
        self._popup.show(self._offers() if is_typed else [])
        self.post_message(self.Edited())

    def _offers(self) -> list[Offer]:
        """What can be completed where the cursor is."""
        if match := _COMMAND_START.fullmatch(self.text):
            return command_offers(matching(match.group(1)))
        match = _FILE_START.search(self._before_cursor)
        if match is None:
            return []
        if self._files is None:
            self.post_message(FilesWanted())
        return file_offers(self._found_files(match.group(1)))

    def _found_files(self, typed: str) -> list[str]:
        from chatcache.frontend import files

        if files.leads_elsewhere(typed):
            return files.list_directory(typed)[:_MAX_OFFERS]
        return files.best_matches(typed, self._files or (), _MAX_OFFERS)

    def know_files(self, names: Sequence[str]) -> None:
        """The files below the working directory, which had been asked for."""
        self._files = names
        if not _COMMAND_START.fullmatch(self.text):
            self._popup.show(self._offers())

    def _refresh_popup(self) -> None:
        """Let an open list fit the text as it is now: typing may be ahead of it."""
        if self._popup.is_open:
            self._popup.show(self._offers())

    def close_popup(self) -> bool:
        """Close the command list; False when it was not open."""
        was_open = self._popup.is_open
        self._popup.close()
        return was_open


def _first_word(text: str) -> str:
    return next(iter(text.split(maxsplit=1)), "")
