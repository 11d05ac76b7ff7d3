"""Changing the model while the chat runs: pick, download, go back, and say what it means.

Owns the model before, so that a download can be called off and a model that fails is left again.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.backends.base import ModelInfo
from chatcache.backends.local.model import shelf
from chatcache.backends.local.model.resolve import BUILTIN, resolve_model
from chatcache.backends.switching import SwitchingBackend
from chatcache.errors import UnavailableError
from chatcache.formatting import one_line, size
from chatcache.frontend import servers
from chatcache.frontend.registry import key_words
from chatcache.frontend.server_shelf import ServerShelf
from chatcache.remotes import check_reach, remote_model
from chatcache.tui.actions_base import ActionGroup
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.models import ModelScreen
from chatcache.tui.widgets.first_run import FirstRunBar

if TYPE_CHECKING:
    from chatcache.tui.screens.chat import ChatScreen

_GO_BACK = "The K and V of {old} stay, and serve again when you switch back."


class ModelActions(ActionGroup):
    model_before: str | None = None

    def __init__(self, screen: ChatScreen) -> None:
        super().__init__(screen)
        self._told_hosts: set[str] = set()

    @property
    def _backend(self) -> SwitchingBackend:
        backend = self._screen.service.backend
        if not isinstance(backend, SwitchingBackend):
            raise UnavailableError(
                "The model cannot be changed here.", "Start chatcache with --model NAME."
            )
        return backend

    async def _do_model(self, argument: str) -> None:
        screen, backend = self._screen, self._backend
        name: str | None = argument
        keep = screen.options.keep_setting
        if not argument:
            picker = ModelScreen(
                self._models_at_hand,
                self._current,
                screen.status.info,
                self._consequence(backend.model),
                servers=self._servers,
                set_default=None if keep is None else partial(keep, "model.default"),
                is_offline=screen.options.is_offline,
            )
            name = await screen.app.push_screen_wait(picker)
        if not name:
            return
        if name in (backend.model, self._current) and screen.status.failure is None:
            screen.toast(f"{one_line(name)} is the model already.")
            return
        self._require_idle()
        if (remote := remote_model(name, screen.options.remotes)) is not None:
            check_reach(remote.profile, is_offline=screen.options.is_offline)
            await self._switch(name, before=backend.model)
            return
        found = await screen.ask(resolve_model, name, is_offline=screen.options.is_offline)
        if isinstance(found, Path) or await self._may_download(name):
            await self._switch(name, before=backend.model)

    @property
    def _current(self) -> str:
        """The model in use. `PROFILE:` has got the name of the server's only model."""
        info, name = self._screen.status.info, self._backend.model
        is_nameless = name.endswith(":") and info is not None and info.model.startswith(name)
        return info.model if info is not None and is_nameless else name

    @property
    def _servers(self) -> ServerShelf:
        options = self._screen.options
        return ServerShelf(options.remotes, options.is_offline)

    def _models_at_hand(self) -> list[shelf.ShelfModel]:
        used_before = self._screen.service.recall.models_used()
        return [*shelf.shelf(used_before), *self._servers.models(used_before)]

    def _consequence(self, old: str) -> str:
        session = self._screen.chats.session
        tokens = session.num_tokens if session else 0
        text = f"{tokens:,} tokens of this chat are read anew by it, once. " if tokens else ""
        return (text + self._kept(old)).strip()

    def _kept(self, old: str) -> str:
        """What stays of a model that is left; what a server keeps, it keeps by itself."""
        is_server = self._servers.find(old) is not None
        return "" if is_server else _GO_BACK.format(old=one_line(old))

    async def _may_download(self, repo_id: str) -> bool:
        """Say how much it is, and ask."""
        screen = self._screen
        num_bytes = await screen.ask(shelf.download_bytes, repo_id)
        free = shutil.disk_usage(Path.home()).free
        detail = f"{size(num_bytes)} from the hub; {size(free)} are free. Esc stops it meanwhile."
        question = f"Download {one_line(repo_id)}?"
        dialog = ConfirmScreen(question, detail, "Download", "Not now")
        is_wanted: bool = await screen.app.push_screen_wait(dialog)
        return is_wanted

    async def _switch(self, name: str, before: str | None) -> None:
        screen, backend = self._screen, self._backend
        self.model_before = before
        screen.status.can_cancel = before is not None
        screen.panel_state.snapshot = None
        await screen.ask(backend.switch, name)

    async def offer_another(self) -> None:
        """On the first run: say that there are other models than the built-in one."""
        screen, backend = self._screen, self._screen.service.backend
        await screen.chats.wait_opened()
        if not isinstance(backend, SwitchingBackend) or backend.model != BUILTIN:
            return
        if screen.chats.session is not None:
            return
        if await screen.ask(screen.service.recall.models_used):
            return
        models = [*await screen.ask(shelf.shelf), *self._servers.models()]
        keys = key_words("model", screen.options.keys)
        bar = screen.query_one(FirstRunBar)
        bar.offer(keys[0] if keys else "/model", models, is_offline=screen.options.is_offline)

    # What the backend says

    def model_ready(self, info: ModelInfo) -> None:
        """The model that was switched to can answer."""
        before, self.model_before = self.model_before, None
        if before is not None:
            words = f"{one_line(info.model)} answers from now on. {self._kept(before)}"
            self._screen.toast(words.strip())
        if (told := servers.privacy_words(info)) and info.device not in self._told_hosts:
            self._told_hosts.add(info.device)
            self._screen.run_async(self._screen.show_note(told))

    def model_failed(self) -> bool:
        """The model cannot be loaded: go back to the one before; False when there is none."""
        return self._go_back()

    def cancel_switch(self) -> bool:
        """Call a download or a load off; False when nothing was switched."""
        status = self._screen.status
        if status.loading is None or not self._go_back():
            return False
        self._screen.toast("Called off. What was downloaded is kept for the next time.")
        return True

    def _go_back(self) -> bool:
        before, self.model_before = self.model_before, None
        if before is None:
            return False
        self._screen.run_async(self._switch(before, before=None))
        return True
