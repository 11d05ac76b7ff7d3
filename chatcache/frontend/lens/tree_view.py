"""The radix tree of a namespace, edge by edge, and its last changes step by step.

Owns the facts of this view, what of them is on the page, and where one can go in it. All but
`read` is pure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.questions import (
    AskTree,
    DescribeTokens,
    TokenPiece,
    TreeEdge,
    TreeEvent,
    TreeShape,
)
from chatcache.errors import UnavailableError
from chatcache.frontend.lens import tree_words as words
from chatcache.frontend.lens.page import Line, Marked, Page, flow, line
from chatcache.frontend.lens.source import LensSource
from chatcache.frontend.lens.state import LensKey
from chatcache.frontend.lens.tree_lines import edge_data, event_data, tree_lines
from chatcache.frontend.lens.tree_replay import after_event
from chatcache.frontend.lens.view import moved
from chatcache.token_ids import TokenIds

TITLE = "The tree"
KEYS = "↑↓ edge · ←→ what happened, step by step"
ASK_FOR_MODEL = "Tokens are shown by their ids until the model is loaded."
LEGEND = "R RAM · D disk · C neither · P pinned · L live now · [X] a control token"
_SHOWN_IDS = 48  # of an edge, more than a line has room for
_MIN_ROWS = 3
_MAX_SENTENCES = 40
MAX_EVENTS = 256


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """`pieces` are what the ids stand for, {} without a model. `now` is the Unix time of the
    shape. `has_engine`: it is an engine's; otherwise it is what lies on disk."""

    shape: TreeShape
    now: float
    model: str = ""
    pieces: words.Pieces = field(default_factory=dict[int, TokenPiece])
    has_engine: bool = True


@dataclass(frozen=True, slots=True)
class TreeState:
    """`chosen` is the number of an edge; None: the one used last, or that a change happened to.
    `step` is a change counted from 1, 0: the tree of now."""

    chosen: int | None = None
    step: int = 0


NOW = TreeState()


def read(source: LensSource) -> TreeFacts:
    """The tree of the model that can answer now; without one, that of the model which read the
    chat last, as it lies on disk. Raises UnavailableError. Blocks."""
    if (info := source.info) is not None:
        shape = source.study(AskTree(MAX_EVENTS))
        if isinstance(shape, TreeShape):
            told = source.pieces(info.tokenizer_id, question(shape))
            pieces = {piece.token_id: piece for piece in told.pieces} if told else {}
            return TreeFacts(shape, time.time(), info.model, pieces)
    reading = source.reading(None)
    on_disk = source.service.tree_on_disk(reading.namespace_id)
    if on_disk is None:
        raise UnavailableError(
            "No tree is known without a model: nothing that it read in this chat is on disk.",
            "Load the model, or say something.",
        )
    return TreeFacts(on_disk, time.time(), reading.model, has_engine=False)


def question(shape: TreeShape) -> DescribeTokens:
    """What has to be asked of a tokenizer to draw this tree."""
    runs = [edge.ids[:_SHOWN_IDS] for edge in shape.edges]
    runs += [event.ids[:_SHOWN_IDS] for event in shape.events] + [e.tail for e in shape.events]
    ids = {token_id for run in runs for token_id in run}
    return DescribeTokens(TokenIds(sorted(ids)))


def page(facts: TreeFacts, width: int, state: TreeState = NOW, height: int | None = None) -> Page:
    """The tree of now, or after a change, or, where the change took an edge away, before it. Of a
    long tree as many edges around the chosen one as the height has room for."""
    shape, event, touched = _seen(facts.shape, state.step)
    chosen = _chosen(shape, touched, state.chosen)
    above = [line(Marked(part, "title")) for part in flow(_summary(facts, shape), width)]
    if event is not None:
        above += _event_lines(facts, event, state.step, width)
    below = list(_below(facts, shape, chosen, event, width))
    rows = len(shape.edges)
    if height is not None and rows > (room := height - len(above) - len(below) - 1):
        rows = max(_MIN_ROWS, room - 2)  # two lines say how many more there are
    signs = dict.fromkeys(touched, words.SIGNS[event.change]) if event else {}
    drawn = tree_lines(shape, facts.pieces, width, facts.now, rows, chosen, signs)
    return Page(
        TITLE,
        (*above, *drawn, *below),
        tuple(_sentences(facts, shape, event, touched, state.step)),
        _data(facts, shape, event),
        KEYS,
    )


def press(facts: TreeFacts, state: TreeState, key: LensKey) -> TreeState:
    """Up and down go along the edges, left and right through what happened, up to now."""
    num_steps = len(facts.shape.events)
    if key in ("left", "right"):
        now = num_steps + 1
        at = state.step if 1 <= state.step <= num_steps else now
        at = max(min(1, num_steps), min(now, at + (1 if key == "right" else -1)))
        return TreeState(step=0 if at == now else at)
    shape, _, touched = _seen(facts.shape, state.step)
    chosen = _chosen(shape, touched, state.chosen)
    place = moved(key, chosen, len(shape.edges))
    return state if place == chosen else replace(state, chosen=place)


def _below(
    facts: TreeFacts, shape: TreeShape, chosen: int, event: TreeEvent | None, width: int
) -> Iterator[Line]:
    """What is said under the tree: of the chosen edge, of the last changes, and the legend."""
    if shape.edges:
        yield ()
        for part in flow(_edge_sentence(shape.edges[chosen], facts), width):
            yield line(part)
    if event is None:
        yield from _last_events(facts, width)
    has_vram = any("vram" in edge.tiers for edge in shape.edges)
    notes = [f"V VRAM · {LEGEND}" if has_vram else LEGEND]
    notes += [ASK_FOR_MODEL] if not facts.pieces and shape.edges else []
    for note in notes:
        for part in flow(note, width):
            yield line(Marked(part, "muted"))


# What is on the page


def _seen(shape: TreeShape, step: int) -> tuple[TreeShape, TreeEvent | None, list[int]]:
    """The tree that a step shows, its event, and the edges that it happened to."""
    if not 1 <= step <= len(shape.events):
        return shape, None, []
    event = shape.events[step - 1]
    was = after_event(shape, step - 2 if event.is_gone else step - 1)
    touched = [
        number
        for number, edge in enumerate(was.edges)
        if set(edge.segments) & set(event.segments)
        and edge.start < event.stop
        and edge.stop > event.start
    ]
    return was, event, touched


def _chosen(shape: TreeShape, touched: Sequence[int], chosen: int | None) -> int:
    if chosen is not None:
        return max(0, min(chosen, len(shape.edges) - 1))
    if touched:
        return touched[0]
    latest = range(len(shape.edges))
    return max(latest, key=lambda number: (shape.edges[number].last_used, number), default=0)


def _summary(facts: TreeFacts, shape: TreeShape) -> str:
    num_tokens = sum(len(edge.ids) for edge in shape.edges)
    num_bytes = sum(edge.num_bytes for edge in shape.edges)
    num_ends = sum(edge.num_below for edge in shape.edges if edge.parent < 0)
    parts = [
        fmt.model_name(facts.model) if facts.model else "",
        fmt.plural(len(shape.edges), "edge"),
        fmt.plural(num_ends, "path"),
        fmt.plural(num_tokens, "token"),
        fmt.size(num_bytes),
        "" if facts.has_engine else "as it lies on disk",
    ]
    return " · ".join(filter(None, parts))


def _event_lines(facts: TreeFacts, event: TreeEvent, step: int, width: int) -> Iterator[Line]:
    for part in flow(_step_title(facts, event, step), width):
        yield line(Marked(part, "strong"))
    sentence = words.event_words(event, facts.pieces)
    for part in flow(f"{fmt.capital(sentence)}.", width):
        yield line(part)


def _step_title(facts: TreeFacts, event: TreeEvent, step: int) -> str:
    when = "before it" if event.is_gone else "behind it"
    change = event.change.replace("_", " ")
    title = f"Step {step:,} of {len(facts.shape.events):,}, {words.clock(event.at)}: {change}"
    return f"{title} ({words.SIGNS[event.change]} below; the tree {when})"


def _last_events(facts: TreeFacts, width: int) -> Iterator[Line]:
    events = facts.shape.events
    if not events:
        return
    yield line(Marked(f"LAST CHANGES, {len(events):,} to step through", "muted"))
    for event in events[-3:]:
        change = event.change.replace("_", " ")
        text = f"{words.clock(event.at)} {words.SIGNS[event.change]} {change}: "
        yield line(fmt.shorten(text + words.event_words(event, facts.pieces), width))


def _edge_sentence(edge: TreeEdge, facts: TreeFacts) -> str:
    shared = f"shared by {edge.num_below:,} paths" if edge.num_below > 1 else "of one path"
    held = fmt.plural(len(edge.segments), "segment")
    parts = [
        f"Tokens {fmt.span(edge.start, edge.stop)}, {shared}",
        f"{words.place_words(edge)}, {fmt.size(edge.num_bytes)} in {held}",
        fmt.plural(edge.hits, "hit") if edge.hits else "not reused yet",
    ]
    if used := words.age(edge.last_used, facts.now):
        parts.append("used just now" if used == "now" else f"used {used} ago")
    if edge.is_pinned:
        parts.append("pinned")
    if edge.is_live:
        parts.append("live now")
    if edge.num_below > 1 and len(edge.segments) > 1:
        parts.append("computed more than once")
    return f"{'; '.join(parts)}."


def _sentences(
    facts: TreeFacts,
    shape: TreeShape,
    event: TreeEvent | None,
    touched: Sequence[int],
    step: int,
) -> Iterator[str]:
    yield f"{TITLE}: {_summary(facts, shape).replace(' · ', ', ')}."
    if event is not None:
        when = "before this change" if event.is_gone else "after this change"
        yield f"Step {step:,} of {len(facts.shape.events):,}, at {words.clock(event.at)}."
        yield f"{fmt.capital(words.event_words(event, facts.pieces))}."
        if touched:
            numbers = ", ".join(f"{number + 1:,}" for number in touched)
            yield f"It happened to {'edge' if len(touched) == 1 else 'edges'} {numbers}."
        yield f"The tree as it was {when}:"
    yield from edge_sentences(facts, shape)
    if event is None:
        for past in facts.shape.events[-3:]:
            yield f"At {words.clock(past.at)}: {words.event_words(past, facts.pieces)}."


def edge_sentences(facts: TreeFacts, shape: TreeShape) -> Iterator[str]:
    """The edges of a tree, the first of them, one sentence each."""
    for number, edge in enumerate(shape.edges[:_MAX_SENTENCES]):
        above = f"behind edge {edge.parent + 1}" if edge.parent >= 0 else "at the root"
        said = [f"Edge {number + 1}", above, fmt.plural(len(edge.ids), "token")]
        said += filter(None, [words.spoken(edge.ids, facts.pieces, 60)])
        yield f"{', '.join(said)}. {_edge_sentence(edge, facts)}"
    if (num_more := len(shape.edges) - _MAX_SENTENCES) > 0:
        yield f"{fmt.plural(num_more, 'edge')} more."


def _data(facts: TreeFacts, shape: TreeShape, event: TreeEvent | None) -> dict[str, Any]:
    return {
        "engine": facts.has_engine,
        "model": facts.model,
        "edges": [edge_data(edge, facts.pieces) for edge in shape.edges],
        "segments_not_shown": shape.num_more,
        "events": [event_data(past, facts.pieces) for past in facts.shape.events],
        "after_event": None if event is None else event.number,
    }
