"""Two tokenizers on the same text, their tokens side by side wherever both end one.

Owns the facts of this comparison, how the tokens are aligned, and its lines. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.questions import Tokenize, TokenPiece, TokenPieces
from chatcache.frontend.lens.page import Line, Marked, Page, flow, line
from chatcache.frontend.lens.visible import SEPARATOR, part_bytes, pieces_of_width, shown_piece

MAX_GROUPS = 2_000
BOTH = "┃"  # both tokenizers end a token here
LEGEND = f"{BOTH} both end a token here  {SEPARATOR} one does"
_SPACE = b" \t\n\r\x0b\x0c"


@dataclass(frozen=True, slots=True)
class CompareFacts:
    """A text, and both answers to `questions`."""

    text: str
    left: TokenPieces
    right: TokenPieces


@dataclass(frozen=True, slots=True)
class Group:
    """Tokens of both, from one place where both end a token to the next one."""

    left: tuple[TokenPiece, ...]
    right: tuple[TokenPiece, ...]


def questions(text: str, other: str) -> tuple[Tokenize, Tokenize]:
    """What has to be asked of the engine: of its own tokenizer, and of that of another model."""
    return Tokenize(text), Tokenize(text, other)


def page(facts: CompareFacts, width: int, height: int | None = None) -> Page:
    """The height does not matter: what does not fit is scrolled to."""
    groups = aligned(facts)
    told = [_count("A", facts.left, facts), _count("B", facts.right, facts), _ratio(facts)]
    lines = [line(Marked(text, "strong")) for words in told for text in flow(words, width)]
    lines += _strips(groups[:MAX_GROUPS], width)
    rest = groups[MAX_GROUPS:]
    notes = [f"… and {sum(len(group.left) for group in rest):,} tokens of A more"] if rest else []
    notes.append(LEGEND)
    lines += [line(Marked(text, "muted")) for words in notes for text in flow(words, width)]
    return Page(
        title="Two tokenizers",
        lines=tuple(lines),
        sentences=(*told, *_sentences(groups)),
        data=_data(facts, groups),
    )


def _pieces(tokens: TokenPieces) -> list[TokenPiece]:
    """All tokens in their order: an answer names each distinct one once."""
    known = {piece.token_id: piece for piece in tokens.pieces}
    return [known[token_id] for token_id in tokens.ids if token_id in known]


def _num_bytes(piece: TokenPiece) -> int:
    """How much of the text a token is, without white space, which tokenizers write differently."""
    return len(part_bytes(piece).translate(None, _SPACE))


def aligned(facts: CompareFacts) -> list[Group]:
    """All tokens of both in groups. One group where the two do not have the same text: one of them
    has written it otherwise."""
    sides = _pieces(facts.left), _pieces(facts.right)
    ends = [list(accumulate(map(_num_bytes, pieces))) for pieces in sides]
    totals = [side[-1] if side else 0 for side in ends]
    if totals[0] != totals[1]:
        return [Group(tuple(sides[0]), tuple(sides[1]))]
    common = sorted({*ends[0]} & {*ends[1]} - {0})
    groups: list[tuple[list[TokenPiece], list[TokenPiece]]] = [([], []) for _ in common or [0]]
    for side, (pieces, stops) in enumerate(zip(sides, ends, strict=True)):
        start = 0
        for piece, stop in zip(pieces, stops, strict=True):
            # White space alone belongs to what comes behind it.
            at = bisect_left(common, stop) if stop > start else bisect_right(common, stop)
            groups[min(at, len(groups) - 1)][side].append(piece)
            start = stop
    return [Group(tuple(left), tuple(right)) for left, right in groups]


def _strips(groups: Sequence[Group], width: int) -> list[Line]:
    """The tokens of both in two rows below each other, wrapped together."""
    room = max(4, width - 3)
    lines: list[Line] = []
    rows: tuple[list[str], list[str]] = ([], [])
    used = 0

    def end() -> None:
        nonlocal used
        if used:
            for letter, row in zip("AB", rows, strict=True):
                lines.append(line(Marked(f"{letter} ", "muted"), Marked(BOTH, "muted"), *row))
                row.clear()
            lines.append(())
        used = 0

    for group in groups:
        texts = [SEPARATOR.join(map(_shown, side)) for side in (group.left, group.right)]
        cells = max(map(fmt.width, texts)) + 1
        if used + cells > room:
            end()
        if cells > room:  # longer than a line: each side on lines of its own
            for letter, text in zip("AB", texts, strict=True):
                for part in pieces_of_width(text, room):
                    lines.append(line(Marked(f"{letter} ", "muted"), f" {part}"))
            continue
        for row, text in zip(rows, texts, strict=True):
            row.append(text + " " * (cells - 1 - fmt.width(text)) + BOTH)
        used += cells
    end()
    return lines


def _shown(piece: TokenPiece) -> str:
    return shown_piece(piece) or f"#{piece.token_id}"


def _count(letter: str, tokens: TokenPieces, facts: CompareFacts) -> str:
    name = fmt.one_line(tokens.tokenizer) or "this model"
    count = len(tokens.ids)
    words = f"{letter} {name}: {fmt.plural(count, 'token')}"
    return f"{words}, {len(facts.text) / count:.1f} characters each" if count else words


def _ratio(facts: CompareFacts) -> str:
    left, right = len(facts.left.ids), len(facts.right.ids)
    if left == right:
        return "Both make as many tokens of it."
    more, less, letter = (right, left, "B") if right > left else (left, right, "A")
    times = f", {more / less:.2f} times as many" if less else ""
    return f"{letter} makes {fmt.plural(more - less, 'token')} more of it{times}."


def _sentences(groups: Sequence[Group]) -> list[str]:
    """Where they differ, for as many places as somebody may listen to."""
    differing = [group for group in groups if len(group.left) != len(group.right)]
    told = [
        f"{_spoken(group.left)} for A, {_spoken(group.right)} for B." for group in differing[:10]
    ]
    if len(differing) > 10:
        told.append(f"{len(differing) - 10:,} places more differ.")
    return told


def _spoken(pieces: Sequence[TokenPiece]) -> str:
    return " | ".join(map(_shown, pieces))


def _data(facts: CompareFacts, groups: Sequence[Group]) -> dict[str, Any]:
    sides = (("a", facts.left), ("b", facts.right))
    return {
        "text": facts.text,
        **{
            name: {"tokenizer": side.tokenizer, "tokens": len(side.ids), "ids": side.ids.to_list()}
            for name, side in sides
        },
        "groups": [
            {
                "a": [piece.text for piece in group.left],
                "b": [piece.text for piece in group.right],
            }
            for group in groups
        ],
    }
