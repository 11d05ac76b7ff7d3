"""The commands on chats as wholes: new, open, find, the tree, rename, delete, export, import."""

from __future__ import annotations

from functools import partial

from chatcache.formatting import plural
from chatcache.tui.actions.talk import TalkActions
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.sessions import SessionsScreen
from chatcache.tui.screens.tree import TreeScreen
from chatcache.tui.stage import Handler


class SessionActions:
    def __init__(self, parts: ChatParts, talk: TalkActions) -> None:
        self._stage, self._chat, self._view = parts.stage, parts.chat, parts.view
        self._idle, self._work, self._talk = parts.idle, parts.work, talk
        self.handlers: dict[str, Handler] = {
            "new": self._new,
            "sessions": self._sessions,
            "find": self._sessions,
            "tree": self._tree,
            "switch": self._switch,
            "rename": self._rename,
            "delete": self._delete,
            "export": self._export,
            "import": self._import,
        }

    async def _new(self, argument: str) -> None:
        await self._stage.ask(self._chat.start_new, argument or None)
        await self._view.show()

    async def _sessions(self, argument: str) -> None:
        picker = SessionsScreen(
            self._chat.service,
            self._chat.session_id,
            is_answering=self._chat.is_busy,
            query=argument,
            now=self._stage.now,
            on_highlight=self._idle.highlighted,
        )
        chosen = await self._stage.push_screen_wait(picker)
        self._idle.list_left(is_opening=chosen is not None)
        if chosen is not None:
            await self._switch(chosen)
        else:
            await self._view.refresh()

    async def _switch(self, argument: str) -> None:
        self._chat.require_idle()
        if not argument:
            await self._sessions("")
            return
        await self._stage.ask(self._chat.switch, argument)
        await self._view.show()

    async def _tree(self, argument: str) -> None:
        self._chat.require_session()
        choice = await self._stage.push_screen_wait(TreeScreen(self._chat, self._stage.now))
        if choice is None:
            return
        if choice.fork_turn is not None:
            await self._talk.fork_at(choice.fork_turn)
        else:
            await self._stage.ask(self._chat.refresh)
            await self._view.show()

    async def _rename(self, argument: str) -> None:
        words = await self._stage.ask(self._chat.rename, argument)
        self._view.show_title()
        self._stage.toast(words)

    async def _delete(self, argument: str) -> None:
        self._chat.require_idle()
        session = self._chat.require_session()
        question = f"Delete “{self._chat.name}”?"
        detail = (
            f"{plural(session.num_turns, 'turn')}; turns that other chats share stay with them."
        )
        if await self._stage.push_screen_wait(ConfirmScreen(question, detail, "Delete")):
            await self._stage.ask(self._chat.delete)
            await self._view.show_rest()

    async def _export(self, argument: str) -> None:
        self._chat.require_session()
        if words := await self._work.run("exporting", partial(self._chat.export, argument)):
            self._stage.toast(words)

    async def _import(self, argument: str) -> None:
        self._chat.require_idle()
        work = partial(self._chat.import_chat, argument)
        if session := await self._work.run("importing", work):
            await self._view.show()
            self._stage.toast(f"Imported {plural(session.num_turns, 'turn')}.")
