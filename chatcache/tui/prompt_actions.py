"""The commands on what the model is told beside the messages: system prompt, personas, sampling."""

from __future__ import annotations

from datetime import datetime

from chatcache.chat import date_warning
from chatcache.errors import NotFoundError, did_you_mean
from chatcache.frontend import reports
from chatcache.frontend.modes import MODE_WORDS, as_history_mode
from chatcache.personas import Persona
from chatcache.tui.actions_base import ActionGroup
from chatcache.tui.screens.personas import PersonaScreen
from chatcache.tui.screens.system_prompt import SystemPromptScreen


class PromptActions(ActionGroup):
    async def _do_system(self, argument: str) -> None:
        screen = self._screen
        system = await screen.chats.current_system()
        text: str | None = argument
        if not argument:
            cost = reports.system_change_cost(screen.panel_state.figures)
            text = await screen.app.push_screen_wait(SystemPromptScreen(system or "", cost))
        if text is None or text == (system or ""):
            return
        self._require_idle()
        await screen.chats.change_system(text or None)
        if told := date_warning.warning(text, datetime.now()):
            screen.toast(told)

    async def _do_mode(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        if argument:
            mode = as_history_mode(argument)
            await screen.ask(screen.service.set_history_mode, session.session_id, mode)
            await screen.chats.check_current()
        now = await screen.ask(screen.service.find_session, session.session_id)
        await screen.show_note(MODE_WORDS[now.history_mode])

    async def _do_persona(self, argument: str) -> None:
        screen = self._screen
        personas = screen.options.personas
        system = await screen.chats.current_system()
        if argument:
            persona: Persona | None = personas.get(argument)
            if persona is None:
                hint = did_you_mean(argument, personas) or "/persona shows them all."
                raise NotFoundError(f"There is no persona {argument!r}.", hint)
        else:
            cost = reports.system_change_cost(screen.panel_state.figures)
            picker = PersonaScreen(personas, system, cost)
            persona = await screen.app.push_screen_wait(picker)
        if persona is None:
            return
        self._require_idle()
        screen.set_sampling(screen.sampling.with_persona(persona))
        if persona.system == system:
            screen.toast(f"{persona.name} is the persona already.")
        else:
            await screen.chats.change_system(persona.system)

    async def _do_set(self, argument: str) -> None:
        screen = self._screen
        if not argument:
            await self._do_params("")
            return
        name, _, value = argument.replace("=", " ").partition(" ")
        screen.set_sampling(screen.sampling.changed(name, value.strip()))
        screen.toast(f"{name}: {value.strip()}. The cache is not touched by it.")

    async def _do_params(self, argument: str) -> None:
        await self._screen.show_note(self._screen.sampling.report())
