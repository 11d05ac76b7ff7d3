"""What a token attended to: a heat over all tokens before it, or a grid of the last few tokens.

Owns the facts of this view, where one can go in it, and its lines. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.questions import AskAttention, AttentionRows
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens.fates import basics, fate_runs
from chatcache.frontend.lens.page import Line, Marked, Page, flow, line, page_of
from chatcache.frontend.lens.studied import StudiedTurn
from chatcache.frontend.lens.token_rows import Outline, moved_token, outline, shade
from chatcache.frontend.lens.visible import SEPARATOR, cut_to

KEYS = "←→ ↑↓ token · l L layer · h H head · m grid"
NEVER_CHANGES = (
    "A token attends to itself and to those before it, never to later ones. So the rows above stay"
    " as they are however the chat goes on, and their K and V can be kept: that is the cache."
)
ASK_FOR_MODEL = "What tokens attend to is computed by the model, and none is loaded."
NUM_TOP = 8
Strongest = list[tuple[int, float]]  # position and weight
GRID_ROWS = 16
MIN_ROWS = 4
_LABEL = 14
_BAR = 10


@dataclass(frozen=True, slots=True)
class AttentionState:
    """`chosen` is a position; None: the last token of the prompt. `layer` and `head` None: averaged
    over all of them."""

    chosen: int | None = None
    layer: int | None = None
    head: int | None = None
    is_grid: bool = False


AttentionFacts = StudiedTurn[AttentionRows]
START = AttentionState()


def chosen_of(reading: TurnReading, state: AttentionState) -> int:
    chosen = len(reading.prompt_ids) - 1 if state.chosen is None else state.chosen
    return min(max(0, chosen), max(0, len(reading.ids) - 1))


def question(reading: TurnReading, state: AttentionState) -> AskAttention:
    """What has to be asked of the engine for this view."""
    last = chosen_of(reading, state)
    first = max(0, last - GRID_ROWS + 1) if state.is_grid else last
    return AskAttention(reading.ids[: last + 1], first, last, state.layer, state.head)


def press(
    facts: AttentionFacts, state: AttentionState, key: str, width: int
) -> AttentionState | None:
    """The state after a key; None: it does nothing here."""
    reading = facts.reading
    chosen, rows = chosen_of(reading, state), facts.told
    num_layers, num_heads = (rows.num_layers, rows.num_heads) if rows else (0, 0)
    if key in ("layer", "layer_back"):
        return replace(state, layer=_next_of(state.layer, num_layers, key == "layer"))
    if key in ("head", "head_back"):
        return replace(state, head=_next_of(state.head, num_heads, key == "head"))
    if key == "mode":
        return replace(state, is_grid=not state.is_grid)
    if key == "cut":
        return replace(state, chosen=None)
    if key in ("up", "down") and not state.is_grid:
        step = -1 if key == "up" else 1
        return replace(state, chosen=_outline(facts, chosen, width, ()).beside(chosen, step))
    key = {"up": "left", "down": "right"}.get(key, key)  # in the grid a token is a row
    place = moved_token(key, chosen, reading)
    return None if place is None else replace(state, chosen=place)


def _next_of(now: int | None, count: int, is_forward: bool) -> int | None:
    """Through all of them, with the average (None) between the last and the first."""
    places: list[int | None] = [None, *range(count)]
    at = places.index(now) if now in places else 0
    return places[(at + (1 if is_forward else -1)) % len(places)]


def page(
    facts: AttentionFacts, width: int, height: int | None = None, state: AttentionState = START
) -> Page:
    """Without a height all tokens are drawn."""
    reading, rows = facts.reading, facts.told
    chosen = chosen_of(reading, state)
    title = f"Attention in turn {reading.turn} of {reading.num_turns}"
    if (why := facts.problem) or rows is None or not rows.rows:
        why = why or ASK_FOR_MODEL
        data = {**basics(reading), "unknown": why}
        return page_of(title, (why, NEVER_CHANGES), width, data, KEYS)
    weights = rows.rows[-1]
    heats, found = heats_of(weights), strongest(weights)
    head = f"{_token(facts, chosen)} of {len(reading.ids):,}, {_averaged(rows, state)}"
    last = [f"{_cost(rows)}.", NEVER_CHANGES]
    top = [line(Marked(text, "strong")) for text in flow(head, width)]
    bottom = [line(Marked(text, "muted")) for words in last for text in flow(words, width)]
    if state.is_grid:
        middle = _grid(facts, rows, width)
    else:
        top += [_overview(heats, width), *_top_lines(facts, found, width)]
        room = None if height is None else max(MIN_ROWS, height - len(top) - len(bottom))
        middle = _strip(facts, chosen, heats, width, room)
    return Page(
        title=title,
        lines=(*top, *middle, *bottom),
        sentences=(f"{head}.", *_top_sentences(facts, found), *last),
        data={**basics(reading), **_data(facts, rows, found, state)},
        keys=KEYS,
    )


# words


def _token(facts: AttentionFacts, position: int) -> str:
    return f"Token {position:,} {_text(facts, position)}"


def _text(facts: AttentionFacts, position: int) -> str:
    return facts.text_of(facts.reading.ids[position])


def _averaged(rows: AttentionRows, state: AttentionState) -> str:
    layers, heads = rows.num_layers, rows.num_heads
    if state.layer is None and state.head is None:
        return f"averaged over {fmt.plural(layers, 'layer')} of {fmt.plural(heads, 'head')}"
    layer = f"layer {state.layer + 1} of {layers}" if state.layer is not None else ""
    head = f"head {state.head + 1} of {heads}" if state.head is not None else ""
    other = f"averaged over {fmt.plural(*((heads, 'head') if layer else (layers, 'layer')))}"
    return ", ".join(filter(None, (layer, head, "" if layer and head else other)))


def _cost(rows: AttentionRows) -> str:
    computed = fmt.plural(rows.num_computed, "token")
    took = fmt.duration(1000 * rows.seconds)
    if not rows.num_computed:
        return f"Nothing was computed for it: the weights were there, {took}"
    return f"Cost: {computed} computed behind {rows.num_reused:,} reused, {took}"


def strongest(weights: Sequence[float]) -> Strongest:
    """The positions attended to most, the strongest first."""
    top = heapq.nlargest(NUM_TOP, enumerate(weights), key=lambda pair: pair[1])
    return [(position, weight) for position, weight in top if weight > 0]


def heats_of(weights: Sequence[float]) -> list[float]:
    """The weights as heats. The first token often takes all that nobody needs: the scale is that
    of the strongest other one."""
    most = max(weights[1:], default=0.0) or max(weights, default=0.0) or 1.0
    return [min(1.0, max(0.0, weight) / most) for weight in weights]


def _percent(weight: float) -> str:
    return f"{100 * weight:.1f} %"


# lines


def _overview(heats: Sequence[float], width: int) -> Line:
    """All tokens in one line, each cell as hot as the hottest token in it."""
    end = f"{len(heats) - 1:,}"
    cells = max(4, min(len(heats), width - len(end) - 4))
    parts: list[Marked] = [Marked("0 ", "muted"), Marked(SEPARATOR, "muted")]
    for cell in range(cells):
        begin, stop = cell * len(heats) // cells, (cell + 1) * len(heats) // cells
        heat = max(heats[begin : max(stop, begin + 1)])
        parts.append(Marked(shade(heat), "", heat))
    return (*parts, Marked(f"{SEPARATOR}{end}", "muted"))


def _top_lines(facts: AttentionFacts, found: Strongest, width: int) -> list[Line]:
    """The strongest with percent and bar, in two columns where there is room."""
    num_columns = 2 if width >= 72 else 1
    column = width // num_columns
    number = len(f"{len(facts.reading.ids):,}")
    label = max(4, min(24, column - number - _BAR - 12))
    most = found[0][1] if found else 1.0
    cells = []
    for position, weight in found:
        bar = "█" * max(1, round(_BAR * weight / most))
        text = cut_to(_text(facts, position), label)
        cell = f"{_percent(weight):>7} {bar:<{_BAR}} {position:>{number},} {text}"
        cells.append(cell + " " * max(0, column - fmt.width(cell)))
    height = -(-len(cells) // num_columns)
    lines = []
    for index in range(height):
        lines.append(line("".join(cells[index::height]).rstrip()))
    return lines


def _outline(facts: AttentionFacts, chosen: int, width: int, heats: Sequence[float]) -> Outline:
    return outline(
        ids=facts.reading.ids,
        pieces=facts.pieces,
        runs=fate_runs(facts.reading),
        messages=facts.reading.messages,
        chosen=chosen,
        width=width,
        shows_ids=False,
        is_folded=False,
        heats=heats,
    )


def _strip(
    facts: AttentionFacts, chosen: int, heats: Sequence[float], width: int, room: int | None
) -> list[Line]:
    """The tokens around the chosen one, with a shade under each."""
    drawn = _outline(facts, chosen, width, heats)
    _, rows = drawn.window(chosen, None if room is None else max(2, room // 2))
    lines: list[Line] = []
    for row in rows:
        lines += [row.drawn, *([row.shade] if row.shade else [])]
    return lines


def _grid(facts: AttentionFacts, rows: AttentionRows, width: int) -> list[Line]:
    """The last tokens against each other; on the right what went to tokens before them."""
    number = len(f"{len(facts.reading.ids):,}")
    room = max(2, (width - number - _LABEL - 10) // 2)
    skipped = max(0, len(rows.rows) - room)
    first = rows.first + skipped
    lines = []
    for offset, weights in enumerate(rows.rows[skipped:]):
        position = first + offset
        most = max(weights[max(1, first) :], default=0.0) or 1.0
        heats = [min(1.0, weight / most) for weight in weights[first:]]
        text = cut_to(_text(facts, position), _LABEL - 2)
        label = f"{position:>{number},} {text}{' ' * (_LABEL - 2 - fmt.width(text))}{SEPARATOR}"
        cells = [Marked(f"{shade(heat)} ", "", heat) for heat in heats]
        blank = Marked("  " * (len(rows.rows) - skipped - len(cells)))
        before = f"{SEPARATOR}{_percent(sum(weights[:first])):>7}" if first else SEPARATOR
        lines.append((Marked(label), *cells, blank, Marked(before, "muted")))
    note = f"each row adds up to 100 %; on the right, what went to tokens 0 to {first - 1:,}"
    note = note if first else "each row adds up to 100 %"
    return lines + [line(Marked(text, "muted")) for text in flow(note, width)]


def _top_sentences(facts: AttentionFacts, found: Strongest) -> list[str]:
    return [
        f"{_percent(weight)} to token {position:,}, {_text(facts, position)}."
        for position, weight in found
    ]


def _data(
    facts: AttentionFacts, rows: AttentionRows, found: Strongest, state: AttentionState
) -> dict[str, Any]:
    top = []
    for position, weight in found:
        piece = facts.pieces.get(facts.reading.ids[position])
        text = piece.text if piece else None
        top.append({"position": position, "text": text, "weight": weight})
    return {
        "position": chosen_of(facts.reading, state),
        "layer": state.layer,
        "head": state.head,
        "layers": rows.num_layers,
        "heads": rows.num_heads,
        "first_row": rows.first,
        "weights": rows.rows,
        "strongest": top,
        "cost": {
            "computed_tokens": rows.num_computed,
            "reused_tokens": rows.num_reused,
            "ms": 1000 * rows.seconds,
        },
    }
