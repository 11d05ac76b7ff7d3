"""Words and signs for a radix tree: where an edge lies, how old it is, what an event did. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping

from chatcache import formatting as fmt
from chatcache.backends.questions import TokenPiece, TreeChange, TreeEdge, TreeEvent
from chatcache.cache.views import Tier
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
_PLACES: Mapping[tuple[Tier, ...], tuple[str, str]] = {
    ("ram",): ("R ", "RAM"),
    ("disk",): ("D ", "disk"),
    ("ram", "disk"): ("RD", "RAM+disk"),
    (): ("C ", "nowhere"),
}
_WHITE_SPACE = str.maketrans({" ": "·", "\n": "↵", "\t": "→"})


def place(edge: TreeEdge) -> str:
    """Letters and words: `RD RAM+disk`."""
    return " ".join(_PLACES[edge.tiers])


def place_words(edge: TreeEdge) -> str:
    return {
        (): "in no tier, so it is to be computed again",
        ("ram",): "in RAM",
        ("disk",): "on disk",
        ("ram", "disk"): "in RAM and on disk",
    }[edge.tiers]


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
            text += fmt.clean(piece.text.translate(_WHITE_SPACE))
        if fmt.width(text) > cells:
            return fmt.shorten(text, cells)
    return text if len(ids) <= cells + 1 else fmt.shorten(f"{text}…", cells)


def spoken(ids: TokenIds, pieces: Pieces, cells: int) -> str:
    """The same for sentences: as it is read, without control tokens."""
    if not pieces:
        return fmt.shorten(shown(ids, pieces, cells), cells)
    known = [pieces[token_id] for token_id in ids[: cells + 1] if token_id in pieces]
    text = "".join(" " if piece.is_control else piece.text for piece in known)
    return f'"{fmt.shorten(text, cells)}"' if text.split() else "control tokens"


def event_words(event: TreeEvent, pieces: Pieces) -> str:
    """What an event did, in a sentence without its number and time."""
    start, stop = event.start, event.stop
    tokens = f"{fmt.plural(stop - start, 'token')} ({start:,}-{stop:,})"
    bytes_ = fmt.size(event.num_bytes)
    gone = "in no tier any more: to be computed again"
    texts: Mapping[tuple[TreeChange, Tier | None], str] = {
        ("inserted", "ram"): f"{tokens} were computed and joined the tree, in RAM, {bytes_}",
        ("inserted", "disk"): f"{tokens} were found on disk, {bytes_}",
        ("split", None): f"the edge of {tokens} was split behind token {event.cut:,}: paths part"
        " there. Arithmetic on positions; no K and V were moved or copied",
        ("spilled", "disk"): f"{tokens} were written to disk, {bytes_}",
        ("restored", "disk"): f"{tokens} were read from disk, {bytes_}",
        ("restored", "ram"): f"{tokens} are in RAM again, {bytes_}",
        ("evicted", "ram"): f"{tokens} were evicted from RAM, {bytes_}: "
        + (gone if event.is_gone else "still on disk"),
        ("evicted", "disk"): f"{tokens} were evicted from disk, {bytes_}: "
        + (gone if event.is_gone else "still in RAM"),
        ("hit", "ram"): f"a prompt went on behind {tokens}: all from RAM",
        ("hit", "disk"): f"a prompt went on behind {tokens}: partly from disk",
    }
    text = texts.get((event.change, event.tier), f"{tokens} were given up: the file is gone or bad")
    tail = spoken(event.tail, pieces, 24) if pieces else ""
    return f"{text}; they end with {tail}" if tail and event.change != "split" else text


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
