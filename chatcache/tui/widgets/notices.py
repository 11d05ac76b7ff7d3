"""What the program says in the transcript: a line about what happened, and the welcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from chatcache.formatting import clean, model_label, one_line, parameters
from chatcache.tui.look.formatting import MUTED, TITLE

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo


class Notice(Static):
    """Calm, marked by a word and not only by colour. Not part of the conversation."""

    def __init__(self, message: str, hint: str = "", *, is_error: bool = False) -> None:
        mark = ("✗ ", "bold $text-error") if is_error else ("· ", MUTED)
        style = "" if is_error else MUTED
        parts: list[tuple[str, str]] = [mark, (clean(message), style)]
        if hint:
            parts.append((f"\n  {clean(hint)}", MUTED))
        super().__init__(Content.assemble(*parts), markup=False)
        self.set_class(is_error, "-error")


class Welcome(Static):
    """Replaced by the first message."""

    def __init__(self, info: ModelInfo | None, hints: list[tuple[str, str]]) -> None:
        super().__init__(markup=False)
        self._hints = hints
        self.show_model(info)

    def show_model(self, info: ModelInfo | None) -> None:
        lines = [
            Content.styled("chatcache", TITLE),
            Content.styled("A chat that keeps what the model has read.", MUTED),
            Content(""),
        ]
        if info is None:
            lines.append(Content("The model is being loaded. You can write already."))
        else:
            name = model_label(info.model, info.quantization)
            place = "at" if info.backend == "remote" else "on"
            lines.append(Content.assemble((name, "bold"), f" is ready {place} {info.device}."))
            count = f"{parameters(info.num_parameters)} parameters" if info.num_parameters else ""
            if about := " · ".join(filter(None, (count, one_line(info.description)))):
                lines.append(Content.styled(about, MUTED))
        lines.append(Content(""))
        width = max((len(key) for key, _ in self._hints), default=0)
        lines += [
            Content.assemble((f"{key:>{width}}", "bold"), (f"  {what}", MUTED))
            for key, what in self._hints
        ]
        self.update(Content("\n").join(lines))
