"""The commands that help to write a message: files, the editor, earlier messages."""

from __future__ import annotations

from pathlib import Path

from chatcache.errors import UsageError
from chatcache.frontend import files
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.screens.history import HistoryScreen
from chatcache.tui.stage import Handler


class WritingActions:
    def __init__(self, parts: ChatParts) -> None:
        self._stage, self._chat, self._composer = parts.stage, parts.chat, parts.composer
        self.handlers: dict[str, Handler] = {
            "attach": self._attach,
            "editor": self._editor,
            "history": self._history,
        }

    async def _attach(self, argument: str) -> None:
        try:
            if not argument:
                hint = "Say /attach PATH, or type @ in a message."
                raise UsageError("The file is missing.", hint)
            attachment = await self._stage.ask(files.read_attachment, argument)
            self._composer.attach(attachment)
        finally:
            self._composer.file_ended()
        self._composer.focus()

    async def find_files(self) -> None:
        """Look below the working directory for what may be attached."""
        names = await self._stage.ask(files.list_files, Path.cwd())
        self._composer.know_files(names)

    async def _editor(self, argument: str) -> None:
        self._composer.edit_outside()

    async def _history(self, argument: str) -> None:
        here = list(reversed(self._composer.recall.texts))
        everywhere = await self._stage.ask(self._chat.service.recall.user_messages)
        texts = list(dict.fromkeys([*here, *everywhere]))
        text = await self._stage.push_screen_wait(HistoryScreen(texts, argument))
        if text is not None:
            self._composer.take_earlier(text)
