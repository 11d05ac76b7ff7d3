"""The forms of a model: exact, or in few bits; what each needs, and what making it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from textual.content import Content

from chatcache.backends.local.model.quantized_form import ModelForm
from chatcache.formatting import duration, model_name, size
from chatcache.model_form import EXACT
from chatcache.tui.look.formatting import MUTED, padded
from chatcache.tui.screens.filter_list import FilterListScreen

_MEMORY, _FILE = 12, 11
_WORDS = {EXACT: "exact", "8bit": "in 8 bits", "4bit": "in 4 bits"}
_ABOUT = {
    EXACT: "The weights as they were saved.",
    "8bit": "Approximate: about half of the memory of bfloat16.",
    "4bit": "Approximate: about a quarter of the memory of bfloat16.",
}
# Until one was made here.
_TIME = {"8bit": "seconds per billion weights", "4bit": "a minute or two per billion weights"}


class FormScreen(FilterListScreen[ModelForm, str]):
    """Returns the name of the chosen form."""

    placeholder = "type to filter"
    keys_text = "Enter switch to it · Esc back"

    def __init__(self, model: str, forms: Callable[[], list[ModelForm]], current: str) -> None:
        super().__init__()
        self.title_text = f"{model_name(model)}: exact, or in fewer bits"
        self._forms, self._current = forms, current

    async def fill(self) -> None:
        forms = await asyncio.to_thread(self._forms)
        self.set_items({form.name: form for form in forms}, self._current)

    def search_text(self, form: ModelForm) -> str:
        return f"{form.name} {_WORDS[form.form]}"

    def columns(self, width: int) -> Content:
        return _line("  ", "weights", "memory", "on disk", "", width)

    def draw(self, form: ModelForm, width: int) -> Content:
        memory = size(form.room.num_bytes) if form.room is not None else ""
        on_disk = size(form.num_bytes) if form.num_bytes else ""
        mark = "● " if form.name == self._current else "  "
        return _line(mark, _WORDS[form.form], memory, on_disk, _state(form), width)

    def preview(self, form: ModelForm) -> Content:
        lines = [_ABOUT[form.form]]
        if not form.is_made:
            time = f"about {duration(form.seconds * 1000)}" if form.seconds else _TIME[form.form]
            lines.append(f"Made once, which takes {time}, and kept for the next start.")
        if form.room is not None:
            lines.append(f"{form.room.detail}.")
        return Content.styled("\n".join(lines), MUTED)

    def choose(self, form: ModelForm) -> None:
        self.dismiss(form.name)


def _state(form: ModelForm) -> str:
    if form.room is not None and form.room.verdict != "fits":
        return form.room.verdict
    if form.form == EXACT:
        return ""
    return "made already" if form.is_made else "to be made"


def _line(mark: str, name: str, memory: str, on_disk: str, state: str, width: int) -> Content:
    tail = f"{memory:>{_MEMORY}}{on_disk:>{_FILE}}  {state:<12}"
    return padded(mark + name, max(1, width - len(tail))) + Content(tail)
