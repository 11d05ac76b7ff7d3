"""What an empty chat shows: what this is, who answers, and the four keys to begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from chatcache.formatting import one_line, parameters
from chatcache.tui.look.styles import MUTED, TITLE

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo


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
            name = one_line(info.model)
            if info.num_parameters:
                name += f", {parameters(info.num_parameters)} parameters"
            place = "at" if info.backend == "remote" else "on"
            lines.append(Content.assemble((name, "bold"), f" is ready {place} {info.device}."))
            if info.description:
                lines.append(Content.styled(one_line(info.description), MUTED))
        lines.append(Content(""))
        width = max((len(key) for key, _ in self._hints), default=0)
        lines += [
            Content.assemble((f"{key:>{width}}", "bold"), (f"  {what}", MUTED))
            for key, what in self._hints
        ]
        self.update(Content("\n").join(lines))
