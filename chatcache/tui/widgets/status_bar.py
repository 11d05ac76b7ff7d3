"""The bottom line: what is going on on the left, the most useful keys on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content

from chatcache.formatting import one_line, size
from chatcache.tui.look.formatting import bar
from chatcache.tui.look.styles import MUTED
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.words import Words

if TYPE_CHECKING:
    from chatcache.frontend.progress import Progress

_BAR_WIDTH = 16
_BAR_FROM = 80  # columns; below, the figures need the room
# While loading, a total from here on is one of bytes: no model has so many tensors.
_BYTES_FROM = 1_000_000


class StatusBar(Horizontal):
    """Shows a sentence, a bar where the end is known, and key hints."""

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
        self.query_one("#state", Words).say(content)

    @property
    def _bar(self) -> int:
        return _BAR_WIDTH if self.app.size.width >= _BAR_FROM else 0

    def show_hints(self, hints: list[tuple[str, str]]) -> None:
        parts = [Content.assemble((key, "bold"), (f" {what}", MUTED)) for key, what in hints]
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
