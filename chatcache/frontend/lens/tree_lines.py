"""The edges of a radix tree as lines in columns, and as data.

An edge takes one line. The tree branches where the drawing does, and an edge that alone goes on
from the one above it stands below it at the same depth. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.questions import TreeEdge, TreeEvent, TreeShape
from chatcache.frontend.lens import tree_words as words
from chatcache.frontend.lens.page import Line, Mark, Marked, line

_MAX_LEAD = 16
_WIDE = 60  # cells that all columns need
_MIN_TEXT = 8


def tree_lines(
    shape: TreeShape,
    pieces: words.Pieces,
    width: int,
    now: float,
    rows: int,
    chosen: int,
    signs: Mapping[int, str],
) -> list[Line]:
    """A header and a line per edge, at most `rows` of them, with the chosen one in view. `signs`
    stand before the edges with these numbers."""
    if not shape.edges:
        return [line("The tree is empty: nothing is remembered yet.")]
    first, last = _window(len(shape.edges), rows, chosen)
    leads = _leads(shape.edges)
    columns = f"{'WHERE':<11} {'SHARED':>6} {'HITS':>4} {'USED':>6}" if width >= _WIDE else "IN "
    lines = [line(Marked(f"  {'TOKENS':>6} {columns} PL TEXT", "muted"))]
    if first:
        lines.append(line(Marked(f"  ... {first:,} more above", "muted")))
    for number in range(first, last):
        pointer = signs.get(number, ">" if number == chosen else " ")
        mark: Mark = "cut" if number in signs else "chosen" if number == chosen else ""
        edge, lead = shape.edges[number], leads[number]
        lines.append(_edge_line(edge, lead, pointer, mark, pieces, width, now))
    if last < len(shape.edges):
        lines.append(line(Marked(f"  ... {len(shape.edges) - last:,} more below", "muted")))
    return lines


def _window(total: int, rows: int, chosen: int) -> tuple[int, int]:
    """The first edge that is drawn, and the one behind the last."""
    first = max(0, min(chosen - rows // 2, total - rows))
    return first, min(total, first + rows)


def _leads(edges: Sequence[TreeEdge]) -> list[str]:
    """The branches that are drawn before the text of each edge."""
    num_children = Counter(edge.parent for edge in edges)
    num_drawn: Counter[int] = Counter()
    below: dict[int, str] = {-1: ""}
    leads = []
    for number, edge in enumerate(edges):
        above = below[edge.parent]
        num_drawn[edge.parent] += 1
        if num_children[edge.parent] == 1:
            leads.append(above)
            below[number] = above
            continue
        is_last = num_drawn[edge.parent] == num_children[edge.parent]
        leads.append(above + ("└ " if is_last else "├ "))
        below[number] = above + ("  " if is_last else "│ ")
    return [lead if len(lead) <= _MAX_LEAD else f"…{lead[-_MAX_LEAD + 1 :]}" for lead in leads]


def _edge_line(
    edge: TreeEdge,
    lead: str,
    pointer: str,
    mark: Mark,
    pieces: words.Pieces,
    width: int,
    now: float,
) -> Line:
    """On a narrow screen without the columns that can be asked for by choosing the edge."""
    flags = ("P" if edge.is_pinned else "") + ("L" if edge.is_live else "")
    shared = f"{edge.num_below:,}" if edge.num_below > 1 else ""
    hits = f"{edge.hits:,}" if edge.hits else ""
    place, figures = f"{words.letters(edge):<3}", f" {flags:<2} "
    if width >= _WIDE:
        place += f"{words.place(edge):<8}"
        figures = f" {shared:>6} {hits:>4} {words.age(edge.last_used, now):>6}{figures}"
    before = f"{pointer} {len(edge.ids):>6,} "
    room = max(_MIN_TEXT, width - fmt.width(before + place + figures + lead))
    return line(
        Marked(before, mark),
        Marked(place, _mark(edge)),
        figures,
        Marked(lead, "muted"),
        Marked(words.shown(edge.ids, pieces, room), mark),
    )


def _mark(edge: TreeEdge) -> Mark:
    if "ram" in edge.tiers or "vram" in edge.tiers:
        return "ram"
    return "disk" if edge.tiers else "computed"


def edge_data(edge: TreeEdge, pieces: words.Pieces) -> dict[str, Any]:
    """An edge for programs; `parent` is the index of an edge, -1 at the root."""
    return {
        "parent": edge.parent,
        "start": edge.start,
        "stop": edge.stop,
        "tokens": len(edge.ids),
        "token_ids": edge.ids.to_list(),
        "text": words.shown(edge.ids, pieces, 60) if pieces else None,
        "tiers": list(edge.tiers),
        "bytes": edge.num_bytes,
        "paths": edge.num_below,
        "hits": edge.hits,
        "last_used": edge.last_used or None,
        "pinned": edge.is_pinned,
        "live": edge.is_live,
        "segments": list(edge.segments),
    }


def event_data(event: TreeEvent, pieces: words.Pieces) -> dict[str, Any]:
    return {
        "number": event.number,
        "at": event.at,
        "change": event.change,
        "tier": event.tier,
        "start": event.start,
        "stop": event.stop,
        "cut": event.cut if event.change == "split" else None,
        "bytes": event.num_bytes,
        "gone": event.is_gone,
        "tail_ids": event.tail.to_list(),
        "tail": words.shown(event.tail, pieces, 60) if pieces else None,
    }
