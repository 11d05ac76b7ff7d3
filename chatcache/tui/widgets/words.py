"""Text that changes often: drawn anew only when it says something else, and the screen is laid out
anew only when it needs other room. A layout of the whole screen costs as much as many keys."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static


class Words(Static):
    """A Static that is given `Content`, without markup."""

    def __init__(
        self, content: Content | str = "", *, id: str | None = None, classes: str | None = None
    ) -> None:
        self._said = Content(content) if isinstance(content, str) else content
        super().__init__(self._said, id=id, classes=classes, markup=False)

    def say(self, content: Content) -> None:
        before, self._said = self._said, content
        if not before.is_same(content):
            self.update(content, layout=self._room(before) != self._room(content))

    def _room(self, content: Content) -> tuple[int, int]:
        """The cells that a content needs, as far as they decide on the size of this widget."""
        styles, width = self.styles, self.content_size.width
        across = max((line.cell_length for line in content.split("\n")), default=0)
        is_wrapped = styles.is_auto_height and width > 0
        return (
            across if styles.is_auto_width else 0,
            content.get_height(styles.get_rules(), width) if is_wrapped else 0,
        )
