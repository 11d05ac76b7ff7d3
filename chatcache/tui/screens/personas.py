"""The personas of the config file: pick one, and see beforehand what its system prompt costs."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content

from chatcache.personas import Persona
from chatcache.tui.look.formatting import MUTED, shorten
from chatcache.tui.screens.filter_list import FilterListScreen

_NAME_WIDTH = 18


class PersonaScreen(FilterListScreen[Persona, Persona]):
    """Returns the persona that was chosen."""

    title_text = "Personas"
    keys_text = "Enter use it in this chat · Esc close"
    empty_text = "There are none yet: `chatcache config edit` shows how one is written."

    def __init__(self, personas: Mapping[str, Persona], system: str | None, cost: str) -> None:
        super().__init__()
        self._personas, self._system, self._cost = personas, system, cost

    async def fill(self) -> None:
        self.set_items(self._personas)

    def search_text(self, persona: Persona) -> str:
        return f"{persona.name} {persona.system}"

    def columns(self, width: int) -> Content:
        return Content(f"  {'name':<{_NAME_WIDTH}}system prompt")

    def draw(self, persona: Persona, width: int) -> Content:
        mark = "● " if persona.system == self._system else "  "
        name = f"{shorten(persona.name, _NAME_WIDTH - 2):<{_NAME_WIDTH}}"
        said = shorten(persona.system, width - len(mark) - _NAME_WIDTH)
        return Content.assemble(mark, (name, "bold"), (said, MUTED))

    def preview(self, persona: Persona) -> Content:
        sampling = " · ".join(f"{name} {value:g}" for name, value in persona.sampling.items())
        if persona.system == self._system:
            facts = "in use" + (f" · {sampling}" if sampling else "")
        else:
            facts = self._cost + (f" Sets {sampling}; that costs nothing." if sampling else "")
        return Content.assemble((facts, MUTED), "\n", self.fit(persona.system))

    def choose(self, persona: Persona) -> None:
        self.dismiss(persona)
