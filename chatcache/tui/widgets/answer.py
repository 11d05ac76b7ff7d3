"""One answer: folded reasoning, Markdown that grows while it streams, a line of figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.content import Content
from textual.events import Click
from textual.widget import Widget
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from chatcache.backends.usage import Figures
from chatcache.formatting import clean, one_line, plural
from chatcache.frontend.figures import ENDINGS, footer, is_real_miss
from chatcache.tui.look.formatting import MUTED, shorten
from chatcache.tui.look.markdown import ChatMarkdown
from chatcache.tui.widgets.bars import progress_content
from chatcache.tui.widgets.message import MessageBlock
from chatcache.tui.widgets.words import Words

if TYPE_CHECKING:
    from chatcache.backends.base import TextDelta


class AnswerMessage(MessageBlock):
    """An answer of the model, finished or growing."""

    def __init__(
        self,
        turn: int,
        text: str = "",
        *,
        model: str,
        created_at: float,
        now: float,
        reasoning: str = "",
        figures: Figures | None = None,
        finish_reason: str | None = None,
    ) -> None:
        super().__init__(turn, text, created_at=created_at, now=now)
        self.role_word = shorten(model, 40) or "assistant"
        self.reasoning = clean(reasoning)
        self.figures = figures
        self.finish_reason = finish_reason
        self._reasoning_tokens = 0
        self._stream: MarkdownStream | None = None

    def compose_body(self) -> Sequence[Widget]:
        thought = Static(self.reasoning, classes="thought", markup=False)
        thought.display = False
        return [
            ThoughtTitle(self._thought_words(), classes="thought-title"),
            thought,
            ChatMarkdown(self.text, classes="body"),
            Words(self._footer_content(), classes="footer"),
        ]

    def on_mount(self) -> None:
        self.query_one(ThoughtTitle).display = bool(self.reasoning)

    @property
    def _footer(self) -> Words:
        return self.query_one(".footer", Words)

    # While it grows

    def show_waiting(self, text: str) -> None:
        self._footer.say(Content.styled(one_line(text), MUTED))

    def show_prefill(self, done: int, total: int, cached: int) -> None:
        content = progress_content("reading", done, total)
        if cached:
            content += Content.styled(f" · {cached:,} reused", MUTED)
        self._footer.say(content)

    async def write(self, deltas: Sequence[TextDelta]) -> None:
        """Append what the model produced since the last time."""
        if thoughts := [delta for delta in deltas if delta.is_reasoning]:
            self.reasoning += clean("".join(delta.text for delta in thoughts))
            self._reasoning_tokens = thoughts[-1].num_tokens
            self._show_reasoning()
        if text := clean("".join(delta.text for delta in deltas if not delta.is_reasoning)):
            self.text += text
            if self._stream is None:
                self._stream = Markdown.get_stream(self.query_one(ChatMarkdown))
            await self._stream.write(text)

    async def settle(self, text: str, reasoning: str | None) -> None:
        """The answer is complete: show exactly what was saved."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.stop()
        self.reasoning = clean(reasoning or "")
        self._show_reasoning()
        self.text = clean(text)
        body = self.query_one(ChatMarkdown)
        if body.source != self.text:
            await body.update(self.text)

    def name_model(self, model: str) -> None:
        """Say which model it was; a message that waited for it was begun without a name."""
        self.role_word = shorten(model, 40) or self.role_word
        self.refresh_head()

    def show_figures(self, figures: Figures | None) -> None:
        self.figures = figures
        self._footer.say(self._footer_content())

    async def on_unmount(self) -> None:
        if self._stream is not None:
            await self._stream.stop()

    # Reasoning

    def fold(self) -> None:
        """Space unfolds the reasoning where there is one, else folds the whole message."""
        if self.reasoning:
            self.toggle_reasoning()
        else:
            super().fold()

    def toggle_reasoning(self) -> None:
        thought = self.query_one(".thought", Static)
        thought.display = not thought.display
        self._show_reasoning()

    def _show_reasoning(self) -> None:
        title, thought = self.query_one(ThoughtTitle), self.query_one(".thought", Static)
        title.display = bool(self.reasoning)
        title.say(Content(self._thought_words()))
        if thought.display:
            thought.update(Content(self.reasoning))

    def _thought_words(self) -> str:
        is_open = self.is_mounted and bool(self.query_one(".thought", Static).display)
        if self._reasoning_tokens:
            length = plural(self._reasoning_tokens, "token")
        else:
            length = plural(len(self.reasoning.split()), "word")
        return f"{'▾' if is_open else '▸'} thought, {length}"

    def _footer_content(self) -> Content:
        if self.figures is None:
            return Content.styled(ENDINGS.get(self.finish_reason or "", ""), MUTED)
        style = "$text-warning" if is_real_miss(self.figures) else MUTED
        return Content.styled(footer(self.figures), style)


class ThoughtTitle(Words):
    """The line that stands for folded reasoning; a click unfolds it."""

    def on_click(self, event: Click) -> None:
        event.stop()
        answer = self.query_ancestor(AnswerMessage)
        answer.toggle_reasoning()
