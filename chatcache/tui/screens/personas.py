"""The personas of the config file: pick one, and see beforehand what its system prompt costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.content import Content

from chatcache.formatting import one_line
from chatcache.personas import Persona
from chatcache.tui.formatting import shorten
from chatcache.tui.screens.filter_list import FilterListScreen, Row
from chatcache.tui.styles import MUTED

_NAME_WIDTH = 18


class PersonaScreen(FilterListScreen[Persona]):
    """Returns the persona that was chosen."""

    title_text = "Personas"
    keys_text = "Enter use it in this chat · Esc close"
    empty_text = "There are none yet: `chatcache config edit` shows how one is written."

    def __init__(self, personas: Sequence[Persona], system: str | None, cost: str) -> None:
        super().__init__()
        self._personas = {persona.name: persona for persona in personas}
        self._system, self._cost = system, cost

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self.set_rows, [self._row(one) for one in self._personas.values()])

    def columns(self, width: int) -> Content:
        return Content(f"  {'name':<{_NAME_WIDTH}}system prompt").stylize(MUTED)

    def _row(self, persona: Persona) -> Row:
        return Row(persona.name, f"{persona.name} {persona.system}", self._drawer(persona))

    def _drawer(self, persona: Persona) -> Callable[[int], Content]:
        mark = "● " if persona.system == self._system else "  "
        name = f"{shorten(persona.name, _NAME_WIDTH - 2):<{_NAME_WIDTH}}"
        said = one_line(persona.system)

        def draw(width: int) -> Content:
            rest = width - len(mark) - _NAME_WIDTH
            return Content.assemble(mark, (name, "bold"), (shorten(said, rest), MUTED))

        return draw

    def preview(self, row: Row) -> Content:
        persona = self._personas[row.row_id]
        sampling = " · ".join(f"{name} {value:g}" for name, value in persona.sampling.items())
        if persona.system == self._system:
            facts = "in use" + (f" · {sampling}" if sampling else "")
        else:
            facts = self._cost + (f" Sets {sampling}; that costs nothing." if sampling else "")
        return Content.assemble((facts, MUTED), "\n", self.fit(persona.system))

    def choose(self, row: Row) -> None:
        self.dismiss(self._personas[row.row_id])
