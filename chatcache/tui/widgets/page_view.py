"""Shows a page of the lens: only the lines that are in view are made into strips.

Owns drawing, scrolling and what is selected with the mouse. Keeps its place when the page changes.
"""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from chatcache.formatting import clean
from chatcache.frontend.lens.page import Line, Page, text_of
from chatcache.tui.look.marks import MarkStyles

_NOTHING = Page("", (), ())


class PageView(ScrollView, can_focus=True, inherit_bindings=False):
    def __init__(self) -> None:
        super().__init__()
        self._page = _NOTHING
        self._styles: MarkStyles | None = None
        self._styles_of = ""

    def show(self, page: Page, *, from_top: bool = False, is_followed: bool = True) -> None:
        """Draw another page. It stays scrolled where it is, as far as the chosen place allows."""
        chosen_before = _chosen_line(self._page)
        self._page = page
        self.virtual_size = Size(0, len(page.lines))
        if from_top:
            self.scroll_to(y=0, animate=False)
        chosen = _chosen_line(page)
        if chosen is not None and is_followed and (from_top or chosen != chosen_before):
            self._bring_into_view(chosen, from_top=from_top)
        self.refresh()

    def _bring_into_view(self, chosen: int, *, from_top: bool) -> None:
        """A page that begins anew shows its beginning, if the chosen line is on it too."""
        height = self.scrollable_content_region.height
        if not (from_top and chosen < height):
            region = Region(0, max(0, chosen - 1), 1, 3)
            self.scroll_to_region(region, animate=False, force=True)

    @property
    def styles_of_marks(self) -> MarkStyles:
        if self._styles is None or self._styles_of != self.app.theme:
            self._styles = MarkStyles(self.app.get_css_variables())
            self._styles_of = self.app.theme
        return self._styles

    def render_line(self, y: int) -> Strip:
        index = self.scroll_offset.y + y
        width = self.scrollable_content_region.width
        base = self.rich_style
        if index >= len(self._page.lines):
            return Strip.blank(width, base)
        strip = self._strip(self._page.lines[index], base)
        if (selection := self.text_selection) is not None and selection.get_span(index):
            strip = self._selected(strip, selection, index)
        return strip.adjust_cell_length(width, base).apply_offsets(0, index)

    def _strip(self, drawn: Line, base: Style) -> Strip:
        styles = self.styles_of_marks
        return Strip(
            Segment(clean(piece.text).replace("\n", " ").replace("\t", " "), style)
            for piece in drawn
            for style in [base + styles.style(piece.mark, piece.heat)]
        )

    def _selected(self, strip: Strip, selection: Selection, index: int) -> Strip:
        start, end = selection.get_span(index) or (0, 0)
        end = strip.cell_length if end == -1 else end
        chosen = self.screen.get_component_rich_style("screen--selection")
        before, middle, behind = strip.divide([start, end, strip.cell_length + 1])[:3]
        return Strip.join([before, middle.apply_style(chosen), behind])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        text = "\n".join(text_of(drawn) for drawn in self._page.lines)
        return selection.extract(text), "\n"


def _chosen_line(page: Page) -> int | None:
    for index, drawn in enumerate(page.lines):
        if any(piece.mark == "chosen" for piece in drawn):
            return index
    return None
