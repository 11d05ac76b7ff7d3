"""Changing the model while the chat runs: pick, download, go back.

What can be chosen and what choosing it means is said by `ModelChoice`.
"""

from __future__ import annotations

from functools import partial

from chatcache.backends.base import ModelInfo
from chatcache.formatting import model_name
from chatcache.frontend.model_choice import ModelChoice
from chatcache.frontend.registry import key_words
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.models import ModelScreen
from chatcache.tui.stage import Handler
from chatcache.tui.widgets.bars import FirstRunBar


class ModelActions:
    def __init__(self, parts: ChatParts) -> None:
        self._stage, self._chat, self._view = parts.stage, parts.chat, parts.view
        self._status, self._panel, self._options = parts.status, parts.panel, parts.options
        self._choice = ModelChoice(
            parts.chat.service,
            parts.options.remotes,
            parts.options.forms,
            is_offline=parts.options.is_offline,
        )
        self.handlers: dict[str, Handler] = {"model": self._model}

    async def _model(self, argument: str) -> None:
        choice, info = self._choice, self._status.info
        name: str | None = argument
        if not argument:
            keep = self._options.keep_setting
            session = self._chat.session
            picker = ModelScreen(
                choice,
                info,
                choice.consequence(session.num_tokens if session else 0),
                set_default=None if keep is None else partial(keep, "model.default"),
            )
            name = await self._stage.push_screen_wait(picker)
        if not name:
            return
        if choice.is_in_use(name, info) and self._status.failure is None:
            self._stage.toast(f"{model_name(name)} is the model already.")
            return
        self._chat.require_idle()
        if await self._stage.ask(choice.must_download, name):
            name = await self._to_download(name)
        if name is not None:
            self._panel.snapshot, self._status.can_cancel = None, True
            await self._stage.ask(choice.switch, name)

    async def _to_download(self, name: str) -> str | None:
        """Say which model it is, and how much, and ask; returns its name if it may be fetched."""
        download = await self._stage.ask(self._choice.download, name)
        detail = f"{download.detail} Esc stops it meanwhile."
        dialog = ConfirmScreen(download.question, detail, "Download", "Not now")
        return download.name if await self._stage.push_screen_wait(dialog) else None

    async def offer_another(self, bar: FirstRunBar) -> None:
        """On the first run: say that there are other models than the built-in one."""
        await self._view.wait_opened()
        if self._chat.session is not None:
            return
        if models := await self._stage.ask(self._choice.first_offers):
            keys = key_words("model", self._options.keys)
            is_offline = self._options.is_offline
            bar.offer(keys[0] if keys else "/model", models, is_offline=is_offline)

    # What the backend says

    async def ready(self, info: ModelInfo) -> None:
        """The model can answer, perhaps after another one."""
        if words := self._choice.ready(info):
            self._stage.toast(words)
        if told := self._choice.privacy(info):
            await self._stage.show_note(told)
        for remark in (*self._choice.remarks(info), self._chat.sampling.remark(info)):
            if remark:
                await self._stage.show_note(remark)

    def go_back(self) -> bool:
        """Have the model before the last switch answer again; False when nothing was switched."""
        way_back = self._choice.way_back()
        if way_back is None:
            return False
        self._panel.snapshot, self._status.can_cancel = None, False
        self._stage.run(self._stage.ask(way_back))
        return True

    def cancel_switch(self) -> bool:
        """Call a download or a load off; False when nothing was switched."""
        if self._status.loading is None or not self.go_back():
            return False
        self._stage.toast(
            "Called off. The files that were downloaded as a whole are kept for the next time."
        )
        return True
