"""The lines of one row around the chat: the title, the bar of the first run, the status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from chatcache.formatting import one_line, size
from chatcache.tui.look.formatting import MUTED, TITLE, bar, shorten
from chatcache.tui.look.layout import NARROW_BELOW
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.words import Words

if TYPE_CHECKING:
    from chatcache.backends.local.model.shelf import ShelfModel
    from chatcache.frontend.progress import Progress

_LONGEST_NAME = 40
_BAR_WIDTH = 16
_BAR_FROM = 80  # columns; below, the figures need the room
# While loading, a total from here on is one of bytes: no model has so many tensors.
_BYTES_FROM = 1_000_000


class TitleBar(Horizontal):
    """Breadcrumb on the left, model on the right."""

    def compose(self) -> ComposeResult:
        yield Words(id="breadcrumb")
        yield Words(id="model-name")

    def show_session(
        self, name: str | None, forked_from: str | None, *, is_append: bool = False
    ) -> None:
        title = Content.assemble(
            ("chatcache", TITLE),
            (" › ", MUTED),
            (one_line(name) if name else "new chat", "bold" if name else "italic"),
        )
        if forked_from:
            title += Content.assemble((f"  ⑂ from {shorten(forked_from, _LONGEST_NAME)}", MUTED))
        if is_append:
            title += Content.styled("  append mode", MUTED)
        self.query_one("#breadcrumb", Words).say(title)

    def show_model(self, text: str) -> None:
        self.query_one("#model-name", Words).say(Content(shorten(text, _LONGEST_NAME)))


class FirstRunBar(Horizontal):
    """Hidden until there is something to offer; Esc and the first message hide it again."""

    def compose(self) -> ComposeResult:
        yield Static(id="first-run-offer", markup=False)
        yield Static(Content.styled("Esc hides", MUTED), id="first-run-hide", markup=False)

    def on_mount(self) -> None:
        self.display = False

    def offer(self, key: str, models: Sequence[ShelfModel], *, is_offline: bool) -> None:
        """Show what the picker has: a model that is here already, else where to get one."""
        here = [model for model in models if model.place != "built in" and not model.problem]
        what = "a directory with a model" if is_offline else "a download, or a directory"
        if here:
            name = shorten(here[0].name, _LONGEST_NAME)
            what = f"{name} is on this machine ({size(here[0].num_bytes)})"
            if here[0].place == "server":
                what = f"{name} at a server of yours"
            if len(here) > 1:
                what += f", and {len(here) - 1} more"
        why = "This model is small. " if self.app.size.width >= NARROW_BELOW else ""
        text = Content.assemble(why, (key, "bold"), f" picks another: {what}")
        self.query_one("#first-run-offer", Static).update(text)
        self.display = True

    def hide(self) -> bool:
        """False when it was not there."""
        was_shown = bool(self.display)
        self.display = False
        return was_shown


class StatusBar(Horizontal):
    """Shows a sentence, a bar where the end is known, and key hints."""

    _state_width = 0

    def compose(self) -> ComposeResult:
        yield Words(id="state")
        yield Words(id="hints")

    def show_state(
        self, status: BackendStatus, doing: str, work: Progress | None = None, ahead: str = ""
    ) -> None:
        """Long work, else the load, else the trouble, else what is done, else what is done ahead
        of a turn, else that all is well."""
        if work is not None:
            content = progress_content(
                work.stage, work.done, work.total, is_bytes=work.is_bytes, bar_width=self._bar
            ) + Content.styled(" · Esc stops", MUTED)
        elif status.loading is not None:
            loading = status.loading
            is_bytes = loading.total >= _BYTES_FROM
            content = progress_content(
                loading.stage, loading.done, loading.total, is_bytes=is_bytes, bar_width=self._bar
            )
            notes = [doing] if doing else []
            if status.seconds_left is not None:
                notes.insert(0, f"{_about(status.seconds_left)} left")
            if status.can_cancel and not doing:
                notes.append("Esc stops")
            content += Content.styled("".join(f" · {note}" for note in notes), MUTED)
        elif status.failure is not None:
            content = Content.assemble(
                ("✗ ", "bold $text-error"), " ".join(status.failure_words).strip()
            )
        elif doing:
            content = Content(doing)
        elif ahead:
            content = Content.styled(ahead, MUTED)
        else:
            content = Content.styled("ready" if status.is_ready else "starting …", MUTED)
        self._state_width = content.cell_length
        self.query_one("#state", Words).say(content)

    @property
    def _bar(self) -> int:
        return _BAR_WIDTH if self.app.size.width >= _BAR_FROM else 0

    def show_hints(self, hints: list[tuple[str, str]]) -> None:
        """As many as have room; on a narrow screen beside the sentence, which needs it more."""
        width = self.app.size.width - 4
        room = width - self._state_width if width < NARROW_BELOW else width
        parts = [Content.assemble((key, "bold"), (f" {what}", MUTED)) for key, what in hints]
        while parts and sum(part.cell_length + 3 for part in parts) - 3 > room:
            parts.pop()
        self.query_one("#hints", Words).say(Content("   ").join(parts))


def _about(seconds: float) -> str:
    """A rough time: `23 s`, `4 min`."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def progress_content(
    stage: str, done: int, total: int, *, is_bytes: bool = False, bar_width: int = _BAR_WIDTH
) -> Content:
    """`reading the prompt ━━━━╸────  1,536 / 4,812`; without a known end the stage alone."""
    stage = one_line(stage)
    if total <= 0:
        return Content(stage + ("" if stage.endswith((".", "…")) else " …"))
    filled, rest = bar(done / total, bar_width) if bar_width else ("", "")
    figures = f"{size(done)} / {size(total)}" if is_bytes else f"{done:,} / {total:,}"
    return Content.assemble(
        f"{stage} ", (filled, "$primary"), (rest, "$foreground 35%"), f"  {figures}"
    )
