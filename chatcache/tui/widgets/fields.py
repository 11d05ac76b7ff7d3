"""Where text is written: Textual's fields, in which a flag or a joined emoji is one character."""

from __future__ import annotations

from textual.document._document import Location, Selection
from textual.events import Paste
from textual.widgets import Input, TextArea

from chatcache.formatting import one_line
from chatcache.terminal import clusters


class TextField(TextArea):
    """Several lines."""

    def get_cursor_left_location(self) -> Location:
        row, column = self.cursor_location
        if column == 0:
            return super().get_cursor_left_location()
        return row, clusters.before(self.document.get_line(row), column)

    def get_cursor_right_location(self) -> Location:
        row, column = self.cursor_location
        line = self.document.get_line(row)
        if column >= len(line):
            return super().get_cursor_right_location()
        return row, clusters.after(line, column)

    def _validate_selection(self, selection: Selection) -> Selection:
        """Whatever moved the cursor, it is never within a character."""
        start, end = super()._validate_selection(selection)
        return Selection(self._whole(start), self._whole(end))

    def _whole(self, location: Location) -> Location:
        row, column = location
        return row, clusters.whole(self.document.get_line(row), column)


class LineField(Input):
    """One line. Of a paste all lines are taken, as one."""

    def action_cursor_left(self, select: bool = False) -> None:
        if select or not self.selection.is_empty:
            super().action_cursor_left(select)
        else:
            self.cursor_position = clusters.before(self.value, self.cursor_position)

    def action_cursor_right(self, select: bool = False) -> None:
        if select or not self.selection.is_empty:
            super().action_cursor_right(select)
        else:
            self.cursor_position = clusters.after(self.value, self.cursor_position)

    def action_delete_left(self) -> None:
        if self.selection.is_empty:
            at = self.cursor_position
            self.delete(clusters.before(self.value, at), at)
        else:
            self.delete_selection()

    def action_delete_right(self) -> None:
        if self.selection.is_empty:
            at = self.cursor_position
            self.delete(at, clusters.after(self.value, at))
        else:
            self.delete_selection()

    def _on_paste(self, event: Paste) -> None:
        event.stop()
        event.prevent_default()
        self.replace(one_line(event.text), *sorted(self.selection))
