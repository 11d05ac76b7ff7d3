"""The demonstration of the radix tree as lines, as sentences and as data. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chatcache import formatting as fmt
from chatcache.frontend.lens import tree_view
from chatcache.frontend.lens import tree_words as words
from chatcache.frontend.lens.page import flow, text_of
from chatcache.frontend.lens.tree_lines import edge_data, event_data, tree_lines
from chatcache.frontend.radix_demo import NUM_STEPS, RAM_BUDGET, DemoStep, DemoTurn

MAX_ROWS = 40
_INDENT = "  "
# What is told of a step's changes, in this order; hits are told by the counts of the turns.
_TOLD = (
    ("inserted", "ram", "computed and kept"),
    ("restored", "disk", "read from disk"),
    ("spilled", "disk", "written to disk"),
    ("evicted", "ram", "evicted from RAM"),
    ("evicted", "disk", "evicted from disk"),
)


def introduction(*, has_disk: bool) -> str:
    budget = f"{fmt.size(RAM_BUDGET)} of memory, about 460 tokens"
    if has_disk:
        return (
            f"Nine steps with {budget}, and a disk: what memory has no room for is written there"
            " before it is evicted, and is read when it is needed again."
        )
    return (
        f"Nine steps with {budget}, and no disk: what is evicted is gone."
        " `chatcache demo radix --disk` plays them with one."
    )


def legend() -> str:
    signs = ("+ new", "/ split", "- evicted from RAM", "v written to disk", "^ read from disk")
    return f"{tree_view.LEGEND}\n{' · '.join(signs)}"


def drawn(step: DemoStep, width: int) -> Iterator[str]:
    """The lines of a step, none wider than `width`."""
    yield from flow(f"Step {step.number} of {NUM_STEPS}: {step.title}", width)
    yield from _flowed(f"should be: {step.expected}", width)
    for turn in step.turns:
        text = f"{turn.chat}: {_quoted(turn, width // 2)}"
        yield from _flowed(text, width)
        yield from _flowed(f"  {_counts(turn)}", width)
    for sign, told in _changes(step):
        yield from _flowed(f"{sign} {told}.", width)
    yield from _flowed(f"in RAM: {_ram_use(step)}.", width)
    lines = tree_lines(step.shape, step.pieces, width, step.at, MAX_ROWS, -1, _signs(step))
    yield from map(text_of, lines)


def sentences(step: DemoStep) -> Iterator[str]:
    """The same without columns and branches."""
    yield f"Step {step.number} of {NUM_STEPS}: {step.title}."
    yield f"It should be: {step.expected}"
    for turn in step.turns:
        yield f"{turn.chat} asks: {_quoted(turn, 60)} {_counts(turn)}."
    for _, told in _changes(step):
        yield f"{told[0].upper()}{told[1:]}."
    yield f"In RAM: {_ram_use(step)}."
    facts = tree_view.TreeFacts(step.shape, step.at, pieces=step.pieces)
    yield from tree_view.edge_sentences(facts, step.shape)


def data(step: DemoStep) -> dict[str, Any]:
    return {
        "step": step.number,
        "title": step.title,
        "expected": step.expected,
        "turns": [_turn_data(turn) for turn in step.turns],
        "ram_bytes": step.ram_bytes,
        "edges": [edge_data(edge, step.pieces) for edge in step.shape.edges],
        "events": [event_data(event, step.pieces) for event in step.events],
    }


def _turn_data(turn: DemoTurn) -> dict[str, Any]:
    return {
        "chat": turn.chat,
        "prompt": turn.prompt,
        "answer": turn.answer,
        "usage": {
            "prompt_tokens": turn.prompt_tokens,
            "completion_tokens": turn.answer_tokens,
            "cached_tokens": turn.reused_tokens,
            "cached_ram_tokens": turn.ram_tokens,
            "cached_disk_tokens": turn.disk_tokens,
            "computed_tokens": turn.computed_tokens,
        },
        "seconds": round(turn.seconds, 3),
    }


def _flowed(text: str, width: int) -> list[str]:
    pad = _INDENT * 2 if text.startswith(_INDENT) else _INDENT
    return [pad + part for part in flow(text, width - len(pad) - 2, _INDENT)]


def _quoted(turn: DemoTurn, cells: int) -> str:
    """A prompt by its beginning and its end: few-shot requests differ in the latter alone."""
    prompt = fmt.one_line(turn.prompt)
    if fmt.width(prompt) > cells:
        prompt = f"{fmt.shorten(prompt, cells - 15)} {prompt[-14:].lstrip()}"
    return f'"{prompt}"'


def _counts(turn: DemoTurn) -> str:
    disk = f" and D {turn.disk_tokens:,} from disk" if turn.disk_tokens else ""
    return (
        f"prompt {turn.prompt_tokens:,} = R {turn.ram_tokens:,} from RAM{disk}"
        f" + C {turn.computed_tokens:,} computed; W {turn.answer_tokens:,} written"
    )


def _changes(step: DemoStep) -> Iterator[tuple[str, str]]:
    """What happened to the tree: of each kind of change its sign, and what is told of it."""
    for event in step.events:
        if event.change == "split":
            where = f"tokens {fmt.span(event.start, event.stop)}"
            yield words.SIGNS["split"], f"split: the edge of {where}, behind token {event.cut:,}"
    for change, tier, said in _TOLD:
        found = [e for e in step.events if (e.change, e.tier) == (change, tier)]
        if not found:
            continue
        ranges = ", ".join(fmt.span(event.start, event.stop) for event in found)
        total = sum(event.stop - event.start for event in found)
        is_gone = all(event.is_gone for event in found)
        after = ""
        if change == "evicted":
            after = ": gone" if is_gone else ": still on disk"
        yield (
            words.SIGNS[found[0].change],
            f"{said}: {fmt.plural(total, 'token')} ({ranges}){after}",
        )


def _ram_use(step: DemoStep) -> str:
    return f"{fmt.size(step.ram_bytes)} of {fmt.size(RAM_BUDGET)}"


def _signs(step: DemoStep) -> Mapping[int, str]:
    """By the number of an edge, the last change of it in this step. What another segment held
    already is not new."""
    found: dict[int, str] = {}
    for event in step.events:
        if event.change == "hit":
            continue
        for number, edge in enumerate(step.shape.edges):
            is_within = edge.start < event.stop and edge.stop > event.start
            is_first = edge.segments[:1] == event.segments[:1]
            is_held = bool(set(edge.segments) & set(event.segments))
            if is_within and (is_first if event.change == "inserted" else is_held):
                found[number] = words.SIGNS[event.change]
    return found
