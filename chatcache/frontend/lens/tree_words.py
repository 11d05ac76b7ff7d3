"""Words and signs for a radix tree: where an edge lies, how old it is, what an event did. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece, TreeChange, TreeEdge, TreeEvent
from chatcache.cache.views import Tier
from chatcache.frontend.lens import visible
from chatcache.token_ids import TokenIds

Pieces = Mapping[int, TokenPiece]

# Beside the edge that an event happened to. Never a mark or a colour alone.
SIGNS: Mapping[TreeChange, str] = {
    "inserted": "+",
    "split": "/",
    "evicted": "-",
    "spilled": "v",
    "restored": "^",
    "hit": "=",
    "given_up": "x",
}
CONTROL = "[X]"
_LETTERS: Mapping[Tier, str] = {"vram": "V", "ram": "R", "disk": "D"}
_NAMES: Mapping[Tier, str] = {"vram": "VRAM", "ram": "RAM", "disk": "disk"}
_PLACES: Mapping[Tier, str] = {"vram": "in VRAM", "ram": "in RAM", "disk": "on disk"}


def letters(edge: TreeEdge) -> str:
    return "".join(_LETTERS[tier] for tier in edge.tiers) or "C"


def place(edge: TreeEdge) -> str:
    """In a word: `RAM+disk`."""
    names = [_NAMES[tier] for tier in edge.tiers]
    return "+".join(names) if len(names) < 3 else "all"


def place_words(edge: TreeEdge) -> str:
    places = " and ".join(_PLACES[tier] for tier in edge.tiers)
    return places or "in no tier, so it is to be computed again"


def age(last_used: float, now: float) -> str:
    """`now`, `5 min`, `3 h`, `2 d`; nothing where it is not known."""
    if not last_used:
        return ""
    seconds = max(0.0, now - last_used)
    for limit, size, unit in ((60, 0, ""), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size:.0f} {unit}" if size else "now"
    return f"{seconds // 86400:,.0f} d"


def shown(ids: TokenIds, pieces: Pieces, cells: int) -> str:
    """The beginning of what ids stand for, with white space drawn and control tokens as a sign;
    without a model, some ids."""
    text = ""
    for token_id in ids[: cells + 1]:  # a token takes a cell at least
        piece = pieces.get(token_id)
        if piece is None:
            text += f"{' ' if text else ''}#{token_id}"
        elif piece.is_control:
            text += CONTROL
        else:
            text += visible.shown(piece.text)
        if fmt.width(text) > cells:
            return fmt.shorten(text, cells)
    return text if len(ids) <= cells + 1 else fmt.shorten(f"{text}…", cells)


def spoken(ids: TokenIds, pieces: Pieces, cells: int) -> str:
    """The same for sentences: as it is read, without control tokens; "" without a model."""
    if not pieces:
        return ""
    known = [pieces[token_id] for token_id in ids[: cells + 1] if token_id in pieces]
    text = "".join(" " if piece.is_control else piece.text for piece in known)
    return f'"{fmt.shorten(text, cells)}"' if text.split() else "control tokens"


def event_words(event: TreeEvent, pieces: Pieces) -> str:
    """What an event did, in a sentence without its number and time."""
    start, stop = event.start, event.stop
    tokens = f"{fmt.plural(stop - start, 'token')} ({fmt.span(start, stop)})"
    bytes_ = fmt.size(event.num_bytes)
    gone = "in no tier any more: to be computed again"
    if event.change == "split":
        return (
            f"the edge of {tokens} was split behind token {event.cut:,}: paths part there."
            " Arithmetic on positions; no K and V were moved or copied"
        )
    name = _NAMES[event.tier or "disk"]
    left = gone if event.is_gone else "in another tier still"
    texts: Mapping[TreeChange, str] = {
        "inserted": f"{tokens} were computed and joined the tree, {bytes_} in RAM",
        "spilled": f"{tokens} were written to disk, {bytes_}",
        "restored": f"{tokens} were kept in {name}, {bytes_}",
        "evicted": f"{tokens} were evicted from {name}, {bytes_}: {left}",
        "hit": f"a prompt went on behind {tokens}, from {name}",
        "given_up": f"{tokens} were given up: the file is gone or damaged",
    }
    text = texts[event.change]
    if event.tier == "disk" and event.change == "inserted":
        text = f"{tokens} were found on disk, {bytes_}"
    elif event.tier == "disk" and event.change == "restored":
        text = f"{tokens} were read from disk, {bytes_}"
    elif event.tier == "disk" and event.change == "hit":
        text = f"a prompt went on behind {tokens}, in part from disk"
    tail = spoken(event.tail, pieces, 24) if pieces else ""
    return f"{text}; they end with {tail}" if tail else text


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
