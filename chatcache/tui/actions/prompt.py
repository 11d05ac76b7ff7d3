"""The commands on what the model is told beside the messages: system prompt, personas, sampling."""

from __future__ import annotations

from chatcache.frontend import reports
from chatcache.frontend.changes import SystemChange
from chatcache.personas import Persona
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.screens.dialogs import SystemPromptScreen
from chatcache.tui.screens.personas import PersonaScreen
from chatcache.tui.stage import Handler


class PromptActions:
    def __init__(self, parts: ChatParts) -> None:
        self._stage, self._chat, self._view = parts.stage, parts.chat, parts.view
        self._panel = parts.panel
        self.handlers: dict[str, Handler] = {
            "system": self._system,
            "mode": self._mode,
            "persona": self._persona,
            "set": self._set,
            "params": self._params,
        }

    async def _system(self, argument: str) -> None:
        system = await self._stage.ask(self._chat.system) or ""
        text: str | None = argument
        if not argument:
            cost = reports.system_change_cost(self._panel.figures)
            text = await self._stage.push_screen_wait(SystemPromptScreen(system, cost))
        if text is not None and text != system:
            await self._present(await self._stage.ask(self._chat.change_system, text))

    async def _present(self, change: SystemChange) -> None:
        if change.is_reread:
            await self._view.show()
        self._stage.toast(change.words)
        if change.warning:
            self._stage.toast(change.warning)

    async def _persona(self, argument: str) -> None:
        persona: Persona | None
        if argument:
            persona = self._chat.find_persona(argument)
        else:
            system = await self._stage.ask(self._chat.system)
            cost = reports.system_change_cost(self._panel.figures)
            picker = PersonaScreen(self._chat.personas, system, cost)
            persona = await self._stage.push_screen_wait(picker)
        if persona is not None:
            change = await self._stage.ask(self._chat.use_persona, persona)
            self._view.show_sampling()
            await self._present(change)

    async def _mode(self, argument: str) -> None:
        words = await self._stage.ask(self._chat.history_mode, argument)
        self._view.show_title()
        await self._stage.show_note(words)

    async def _set(self, argument: str) -> None:
        if not argument:
            await self._params("")
            return
        words = self._chat.set_parameter(argument, self._panel.info)
        self._view.show_sampling()
        self._stage.toast(words)

    async def _params(self, argument: str) -> None:
        await self._stage.show_note(self._chat.sampling.report())
