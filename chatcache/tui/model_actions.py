"""Changing the model while the chat runs: pick, download, go back, and say what it means.

Owns the model before, so that a download can be called off and a model that fails is left again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from chatcache.backends.base import ModelInfo
from chatcache.backends.local import shelf
from chatcache.backends.local.resolve import BUILTIN, resolve_model
from chatcache.backends.switching import SwitchingBackend
from chatcache.errors import UnavailableError
from chatcache.frontend.registry import key_words
from chatcache.tui.actions_base import ActionGroup
from chatcache.tui.formatting import one_line, size
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.models import ModelScreen
from chatcache.tui.widgets.first_run import FirstRunBar

_GO_BACK = "The K and V of {old} stay, and serve again when you switch back."


class ModelActions(ActionGroup):
    model_before: str | None = None

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
        if not argument:
            picker = ModelScreen(
                lambda: shelf.shelf(screen.service.recall.models_used()),
                backend.model,
                screen.status.info,
                self._consequence(backend.model),
                set_default=screen.options.set_default_model,
                is_offline=screen.options.is_offline,
            )
            name = await screen.app.push_screen_wait(picker)
        if not name:
            return
        if name == backend.model and screen.status.failure is None:
            screen.toast(f"{one_line(name)} is the model already.")
            return
        self._require_idle()
        found = await screen.ask(resolve_model, name, is_offline=screen.options.is_offline)
        if isinstance(found, Path) or await self._may_download(name):
            await self._switch(name, before=backend.model)

    def _consequence(self, old: str) -> str:
        session = self._screen.chats.session
        tokens = session.num_tokens if session else 0
        text = f"{tokens:,} tokens of this chat are read anew by it, once. " if tokens else ""
        return text + _GO_BACK.format(old=one_line(old))

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
        models = await screen.ask(shelf.shelf)
        keys = key_words("model", screen.options.keys)
        bar = screen.query_one(FirstRunBar)
        bar.offer(keys[0] if keys else "/model", models, is_offline=screen.options.is_offline)

    # What the backend says

    def model_ready(self, info: ModelInfo) -> None:
        """The model that was switched to can answer."""
        before, self.model_before = self.model_before, None
        if before is not None:
            kept = _GO_BACK.format(old=one_line(before))
            self._screen.toast(f"{one_line(info.model)} answers from now on. {kept}")

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
