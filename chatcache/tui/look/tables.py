"""A table of an answer as lines of a given width: columns aligned, long cells wrapped, none cut.

Where the columns would be too narrow to be read, each row is written as a list of its cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from textual.content import Content

from chatcache.tui.look.formatting import MUTED

Align = Literal["left", "center", "right"]
_GAP = "  "
_RULE = "$foreground 30%"
# A column that has to be narrower than this, with longer words in it, makes the table a list.
_NARROWEST = 12


@dataclass(frozen=True, slots=True)
class Table:
    """`aligns` may be shorter than a row; the rest is aligned left. A newline in a cell begins a
    new line there."""

    headers: Sequence[Content]
    rows: Sequence[Sequence[Content]]
    aligns: Sequence[Align] = field(default_factory=tuple)

    def align(self, column: int) -> Align:
        return self.aligns[column] if column < len(self.aligns) else "left"


def lines(table: Table, width: int) -> list[Content]:
    """The table, at most `width` cells wide."""
    if not table.headers or width <= 0:
        return []
    widths = _widths(table, width)
    if widths is None:
        return list(_as_list(table, width))
    return list(_as_table(table, widths))


def _widths(table: Table, width: int) -> list[int] | None:
    """The cells that each column gets; None when that is too little to read."""
    wanted = [max(map(_longest_line, column)) for column in _columns(table)]
    room = width - len(_GAP) * (len(wanted) - 1)
    if sum(wanted) <= room:
        return wanted
    given = [0] * len(wanted)
    # The narrow columns get what they want, and the wide ones share what is left.
    by_want = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for num_done, index in enumerate(by_want):
        share = room // (len(wanted) - num_done)
        given[index] = min(wanted[index], max(0, share))
        room -= given[index]
    words = [max(map(_longest_word, column)) for column in _columns(table)]
    is_legible = all(got >= min(word, _NARROWEST) for got, word in zip(given, words, strict=True))
    return given if is_legible else None


def _columns(table: Table) -> list[list[Content]]:
    every = [table.headers, *table.rows]
    return [[row[index] for row in every if index < len(row)] for index in range(len(every[0]))]


def _longest_line(cell: Content) -> int:
    return max((line.cell_length for line in cell.split("\n")), default=0)


def _longest_word(cell: Content) -> int:
    return max((Content(word).cell_length for word in cell.plain.split()), default=0)


def _as_table(table: Table, widths: Sequence[int]) -> Iterator[Content]:
    total = sum(widths) + len(_GAP) * (len(widths) - 1)
    yield from _row([cell.stylize_before("bold") for cell in table.headers], table, widths)
    yield Content.styled("─" * total, _RULE)
    rows = [list(_row(row, table, widths)) for row in table.rows]
    is_tall = any(len(row) > 1 for row in rows)
    for index, row in enumerate(rows):
        if index and is_tall:
            yield Content.styled("╌" * total, _RULE)
        yield from row


def _row(cells: Sequence[Content], table: Table, widths: Sequence[int]) -> Iterator[Content]:
    """A row, on as many lines as its tallest cell needs."""
    wrapped = [
        cell.wrap(max(1, width)) if cell else [Content("")]
        for cell, width in zip(cells, widths, strict=False)
    ]
    for parts in zip_longest(*wrapped, fillvalue=Content("")):
        aligned = [
            _aligned(part.rstrip(), width, table.align(index))
            for index, (part, width) in enumerate(zip(parts, widths, strict=False))
        ]
        yield Content(_GAP).join(aligned).rstrip()


def _aligned(line: Content, width: int, align: Align) -> Content:
    gap = max(0, width - line.cell_length)
    left = {"left": 0, "center": gap // 2, "right": gap}[align]
    return line.pad(left, gap - left)


def _as_list(table: Table, width: int) -> Iterator[Content]:
    for index, row in enumerate(table.rows):
        if index:
            yield Content("")
        for header, cell in zip(table.headers, row, strict=False):
            name = header.stylize_before("bold") + Content.styled(": ", MUTED)
            yield from (name + cell).wrap(width)
    if not table.rows:
        yield from Content.styled(" · ", MUTED).join(table.headers).wrap(width)
