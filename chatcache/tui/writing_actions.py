"""The commands that help to write a message: files, the editor, earlier messages."""

from __future__ import annotations

from pathlib import Path

from chatcache.errors import UsageError
from chatcache.frontend import files
from chatcache.tui.actions_base import ActionGroup
from chatcache.tui.screens.history import HistoryScreen


class WritingActions(ActionGroup):
    async def _do_attach(self, argument: str) -> None:
        if not argument:
            raise UsageError("The file is missing.", "Say /attach PATH, or type @ in a message.")
        attachment = await self._screen.ask(files.read_attachment, argument)
        self._screen.composer.attach(attachment)
        self._screen.composer.focus()

    async def find_files(self) -> None:
        """Look below the working directory for what may be attached."""
        names = await self._screen.ask(files.list_files, Path.cwd())
        self._screen.composer.know_files(names)

    async def _do_editor(self, argument: str) -> None:
        self._screen.composer.edit_outside()

    async def _do_history(self, argument: str) -> None:
        screen = self._screen
        here = list(reversed(screen.composer.earlier))
        everywhere = await screen.ask(screen.service.recall.user_messages)
        texts = list(dict.fromkeys([*here, *everywhere]))
        text = await screen.app.push_screen_wait(HistoryScreen(texts, argument))
        if text is not None:
            screen.composer.set_text(text)
