"""Tokens in the order in which they are read, wrapped into rows of cells.

Owns the outline of a turn (runs of one fate, the messages in them, blocks of tokens), its rows, and
which of them are seen around one token. Rows are made block by block and only where they are seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece
from chatcache.chat.readings import MessageRun, TurnReading
from chatcache.frontend.lens.fates import FateRun, message_words, run_words
from chatcache.frontend.lens.page import Line, Mark, Marked, line
from chatcache.frontend.lens.visible import SEPARATOR, pieces_of_width, shown_piece
from chatcache.token_ids import TokenIds

# A row ends with its block, so that the rows of a long message can be made from the middle.
BLOCK_TOKENS = 128
MIN_ROOM = 8


def moved_token(key: str, chosen: int, reading: TurnReading) -> int | None:
    """Where a key leads from a token: to the next one, the beginning of a message, or an end; None:
    nowhere."""
    starts = [run.start for run in reading.messages]
    last = max(0, len(reading.ids) - 1)
    moves = {
        "left": chosen - 1,
        "right": chosen + 1,
        "home": 0,
        "end": last,
        "page_up": max((start for start in starts if start < chosen), default=0),
        "page_down": min((start for start in starts if start > chosen), default=last),
    }
    return min(max(0, moves[key]), last) if key in moves else None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A line of the outline, and which tokens begin in it: none in a heading. `shade` is the line
    below it, where tokens have a heat."""

    drawn: Line
    positions: range = range(0)
    shade: Line = ()


@dataclass(frozen=True, slots=True)
class _Block:
    """Tokens `start` to `stop`, or the heading of what comes behind it."""

    run: FateRun
    start: int
    stop: int
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Outline:
    """The tokens of a turn as rows; `blocks` are all that can be seen, in order. `heats` are those
    of the leading tokens, from 0 to 1; none are drawn where there are none."""

    ids: TokenIds
    pieces: Mapping[int, TokenPiece]
    blocks: Sequence[_Block]
    chosen: int
    width: int
    shows_ids: bool
    heats: Sequence[float] = ()

    def window(self, chosen: int, room: int | None) -> tuple[list[Line], list[TokenRow]]:
        """The rows around a token, `room` of them at most; None: all."""
        at = self._block_of(chosen)
        if room is None or at is None:
            rows = [row for block in self.blocks for row in self._rows(block)]
            rows = rows[:room]
            return [row.drawn for row in rows], rows
        middle = self._rows(self.blocks[at])
        here = next((i for i, row in enumerate(middle) if chosen in row.positions), 0)
        above = _filled(
            middle[:here], (self._rows(block) for block in reversed(self.blocks[:at])), room, -1
        )
        below = _filled(middle[here:], map(self._rows, self.blocks[at + 1 :]), room, 1)
        num_above = min(len(above), max(room // 2, room - len(below)))
        rows = [*above[len(above) - num_above :], *below[: room - num_above]]
        return [row.drawn for row in rows], rows

    def beside(self, chosen: int, step: int) -> int:
        """The token in the row above (-1) or below (1), about as far from its beginning."""
        at = self._block_of(chosen)
        if at is None:
            return chosen
        rows: list[TokenRow] = []
        for block in self.blocks[max(0, at - 2) : at + 3]:
            if block.run == self.blocks[at].run:
                rows += [row for row in self._rows(block) if row.positions]
        here = next(i for i, row in enumerate(rows) if chosen in row.positions)
        run = self.blocks[at].run
        if not 0 <= here + step < len(rows):  # the next run, which may be folded
            beside = run.start - 1 if step < 0 else run.stop
            return beside if 0 <= beside < len(self.ids) else chosen
        target = rows[here + step].positions
        return min(target.start + chosen - rows[here].positions.start, target.stop - 1)

    def _block_of(self, position: int) -> int | None:
        return next(
            (i for i, block in enumerate(self.blocks) if block.start <= position < block.stop), None
        )

    def _rows(self, block: _Block) -> list[TokenRow]:
        if block.heading:
            mark = block.run.mark if block.heading.startswith(block.run.letter) else "muted"
            return [TokenRow(line(Marked(fmt.shorten(block.heading, self.width), mark)))]
        return list(self._token_rows(block))

    def _token_rows(self, block: _Block) -> Iterator[TokenRow]:
        gutter = len(f"{block.run.letter} {len(self.ids):,} ") + 1
        room = max(MIN_ROOM, self.width - gutter)
        row: list[Marked] = []
        first, used = block.start, 0

        def ended(stop: int) -> TokenRow:
            nonlocal row, first, used
            positions = range(first, stop)
            number = f"{first:,}" if positions else ""
            letter = Marked(block.run.letter, block.run.mark)
            begin = Marked(f"{number:>{gutter - 2 - len(letter.text)}} ", "muted")
            edge = Marked("[" if first == self.chosen and positions else SEPARATOR, "muted")
            drawn = (letter, begin, edge, *row)
            done = TokenRow(drawn, positions, shade_of(drawn) if self.heats else ())
            row, first, used = [], stop, 0
            return done

        for position, token_id in enumerate(self.ids[block.start : block.stop], block.start):
            text, ends_line = self._text(token_id)
            if row and used + fmt.width(text) + 1 > room:
                yield ended(position)
            mark = self._mark(position, token_id, block.run)
            parts = pieces_of_width(text, room - 1)
            for index, part in enumerate(parts):
                row.append(Marked(part, mark, self._heat(position)))
                used += fmt.width(part)
                if index < len(parts) - 1:
                    yield ended(position + 1)
            row.append(Marked(self._edge(position), "muted"))
            used += 1
            if ends_line:
                yield ended(position + 1)
        if row:
            yield ended(block.stop)

    def _text(self, token_id: int) -> tuple[str, bool]:
        """A token as it is drawn, and whether it ends a line of the text."""
        piece = self.pieces.get(token_id)
        if piece is None:
            return f"#{token_id}", False
        text = shown_piece(piece) or f"#{token_id}"
        ends_line = piece.text.endswith("\n")
        return (f"{text}‹{token_id}›" if self.shows_ids else text), ends_line

    def _mark(self, position: int, token_id: int, run: FateRun) -> Mark:
        if position == self.chosen:
            return "chosen"
        piece = self.pieces.get(token_id)
        return "control" if piece is not None and piece.is_control else run.mark

    def _heat(self, position: int) -> float | None:
        return self.heats[position] if position < len(self.heats) else None

    def _edge(self, position: int) -> str:
        if position == self.chosen:
            return "]"
        return "[" if position + 1 == self.chosen else SEPARATOR


def shade(heat: float) -> str:
    """How a heat from 0 to 1 is drawn without colour."""
    return " ░▒▓█"[min(4, math.ceil(heat * 4 - 0.2))] if heat > 0.02 else " "


def shade_of(drawn: Line) -> Line:
    """The heats of a line as shades, each below its text."""
    return tuple(
        Marked((" " if part.heat is None else shade(part.heat)) * fmt.width(part.text), "muted")
        for part in drawn
    )


def _filled(
    rows: list[TokenRow], more: Iterable[list[TokenRow]], room: int, step: int
) -> list[TokenRow]:
    """`rows` and what comes behind (1) or before (-1) them, until there is enough."""
    for block in more:
        if len(rows) >= room:
            break
        rows = [*rows, *block] if step > 0 else [*block, *rows]
    return rows


def outline(
    *,
    ids: TokenIds,
    pieces: Mapping[int, TokenPiece],
    runs: Sequence[FateRun],
    messages: Sequence[MessageRun],
    chosen: int,
    width: int,
    shows_ids: bool,
    is_folded: bool,
    heats: Sequence[float] = (),
) -> Outline:
    """Headings of all runs; the tokens of all, or only of that with the chosen one."""
    blocks: list[_Block] = []
    for run in runs:
        blocks.append(_Block(run, run.start, run.start, run_words(run, messages)))
        if is_folded and not run.start <= chosen < run.stop:
            continue
        inside = [part for part in messages if part.start < run.stop and part.stop > run.start]
        for part in inside or [MessageRun(run.start, run.stop, ())]:
            start, stop = max(part.start, run.start), min(part.stop, run.stop)
            if len(inside) > 1:
                blocks.append(_Block(run, start, start, f"── {message_words(part)}"))
            blocks += [_Block(run, begin, end) for begin, end in _pieces(start, stop)]
    return Outline(ids, pieces, blocks, chosen, width, shows_ids, heats)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """From `start` to `stop`, cut at multiples of a block."""
    while start < stop:
        end = min(stop, (start // BLOCK_TOKENS + 1) * BLOCK_TOKENS)
        yield start, end
        start = end
