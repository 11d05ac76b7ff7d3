"""Where a prompt left what had been read before: both runs around the cut, why, and what it cost.

Owns the facts of this view, what would avoid each kind of cut, and its lines. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.questions import DescribeTokens, TokenPiece, TokenPieces
from chatcache.backends.usage import Figures, Reason
from chatcache.chat.readings import LEFT_LINE, TurnReading
from chatcache.frontend.figures import reason_words
from chatcache.frontend.lens.fates import basics
from chatcache.frontend.lens.page import Line, Mark, Marked, Page, flow, line, page_of
from chatcache.frontend.lens.visible import SEPARATOR, cut_to, shown_piece
from chatcache.token_ids import TokenIds

NUM_AROUND = 12  # tokens shown on each side
AVOIDING: Mapping[Reason, str] = {
    "new_user_turn": "Nothing: what is new has to be computed.",
    "cold_start": "The first time that a text is read, all of it is computed; a beginning that"
    " another chat has too, such as one system prompt for both, would be reused.",
    "below_minimum": "Chats that begin with the same long system prompt share its tokens; with"
    " few tokens in common there is nothing to gain.",
    "system_prompt_changed": "Put what changes into a message and leave the system prompt as it is,"
    " or change it while the chat is short.",
    "turn_edited": "Say it in a new message, behind what was read; if it must be an edit, change"
    " late words rather than early ones.",
    "template_rewrote_history": "`/mode append` keeps what was read as it was read; else idle time"
    " (cache.idle_next_turn) computes it before you send.",
    "template_is_unstable": "Take the date, time or random part out of the template or the system"
    " prompt, or use `/mode append`.",
    "model_changed": "Stay with one model in a chat: keys and values of one mean nothing to"
    " another. Those of the first are kept for when you go back.",
    "adapter_changed": "Stay with one adapter in a chat: it changes every key and value.",
    "settings_changed": "Keep the settings that the chat was read with: dtype, quantisation and the"
    " attention code change every key and value.",
    "evicted": "Raise cache.ram_budget or cache.disk_budget, or pin the chat:"
    " `chatcache cache pin`.",
    "expired": "Raise cache.ram_ttl or cache.disk_ttl, or pin the chat: `chatcache cache pin`.",
    "corrupt": "Nothing that you did: the file was set aside. If it happens again, look after the"
    " disk; `chatcache cache verify` checks all files.",
    "not_cuttable": "This kind of model goes on only from where a message ended; one with attention"
    " in all layers can be cut at any token.",
    "cheaper_to_recompute": "Nothing: computing was quicker than reading.",
    "disabled": "Leave --no-cache out.",
    "remote": "A server keeps a cache of its own.",
}


@dataclass(frozen=True, slots=True)
class DivergenceFacts:
    """`pieces` are what the ids around the cut stand for; none while no model is loaded."""

    reading: TurnReading
    pieces: Mapping[int, TokenPiece] = field(default_factory=dict)


def around(reading: TurnReading) -> tuple[TokenIds, TokenIds, TokenIds]:
    """The tokens in front of the place that matters, then what was read there before, and now."""
    at = place_of(reading)
    before = reading.prompt_ids[max(0, at - NUM_AROUND) : at]
    old = reading.history_ids[at : at + NUM_AROUND]
    return before, old, reading.prompt_ids[at : at + NUM_AROUND]


def place_of(reading: TurnReading) -> int:
    """The first token that differs from what was read before; where none does, the cut."""
    shared = reading.history_ids.common_prefix(reading.prompt_ids)
    if is_left(reading):
        return shared
    cached = reading.figures.cached_tokens if reading.figures else shared
    return min(cached, len(reading.prompt_ids))


def is_left(reading: TurnReading) -> bool:
    """Whether the prompt is something else than a continuation of what was read before."""
    history = reading.history_ids
    return history.common_prefix(reading.prompt_ids) < min(len(history), len(reading.prompt_ids))


def question(reading: TurnReading) -> DescribeTokens:
    """What has to be asked of the engine for this view."""
    before, old, new = around(reading)
    return DescribeTokens(before + old + new)


def divergence_facts(reading: TurnReading, answer: TokenPieces | None) -> DivergenceFacts:
    """`answer` is that to `question`; None: nobody could be asked."""
    pieces = {piece.token_id: piece for piece in answer.pieces} if answer else {}
    return DivergenceFacts(reading, pieces)


def page(facts: DivergenceFacts, width: int, height: int | None = None) -> Page:
    """The height does not matter: it is a short page."""
    reading, figures = facts.reading, facts.reading.figures
    title = f"Divergence in turn {reading.turn} of {reading.num_turns}"
    if figures is None or (figures.is_remote and not reading.prompt_ids):
        why = reading.unknown or "This turn has no answer: how it was read is not recorded."
        return page_of(title, (why,), width, {**basics(reading), "unknown": why})
    told = _told(reading, figures)
    lines = tuple(line(Marked(text, mark)) for mark, words in told for text in flow(words, width))
    return Page(
        title=title,
        lines=(*lines, *(_strips(facts, width) if reading.prompt_ids else ())),
        sentences=(*(words for _, words in told), *_place_sentences(facts)),
        data={**basics(reading), **_data(facts, figures)},
    )


def _told(reading: TurnReading, figures: Figures) -> list[tuple[Mark, str]]:
    """The cause, the cost, and what would avoid it."""
    cache = figures.cache
    told: list[tuple[Mark, str]]
    if cache.outcome == "hit" and is_left(reading):
        words = f"The prompt differs from what was read before at token {place_of(reading):,}, and"
        told = [("strong", f"{words} that was computed ahead.")]
    elif cache.outcome == "hit":
        told = [("strong", "Nothing diverged: the prompt begins with what was read before.")]
    else:
        told = [("cut", f"{reason_words(cache.reason).capitalize()}.")]
    if cache.detail:
        told.append(("", f"{cache.detail[0].upper()}{cache.detail[1:].rstrip('.')}."))
    told.append(("", _cost_sentence(reading, figures)))
    if cache.outcome != "hit":
        told.append(("", f"What would avoid it: {AVOIDING[cache.reason]}"))
    if reading.unknown:
        told.append(("muted", reading.unknown))
    if reading.no_history and cache.outcome != "hit":
        told.append(("muted", reading.no_history))
    return told


def lost_tokens(reading: TurnReading, figures: Figures) -> tuple[int, int]:
    """(tokens read before with equal ids that were computed again, tokens of the earlier run behind
    the first difference, whose K and V are of no use here)."""
    shared = reading.history_ids.common_prefix(reading.prompt_ids)
    # The last token of a prompt is always computed: its scores are needed.
    again = max(0, min(shared, len(reading.prompt_ids) - 1) - figures.cached_tokens)
    return again, len(reading.history_ids) - shared


def _cost_sentence(reading: TurnReading, figures: Figures) -> str:
    computed, took = figures.computed_tokens, figures.timings.prefill_ms
    words = f"Computed: {fmt.plural(computed, 'token')}"
    if took is not None:
        words += f" in {fmt.duration(took)}"
    again, stale = lost_tokens(reading, figures)
    if again:
        words += f"; {again:,} of them were read before{_share(again, figures)}"
    if stale and is_left(reading):
        words += f"; {fmt.plural(stale, 'token')} read before came behind the difference"
    return f"{words}."


def _share(tokens: int, figures: Figures) -> str:
    ms = _cost_ms(tokens, figures)
    return "" if ms is None else f", about {fmt.duration(ms)}"


def _cost_ms(tokens: int, figures: Figures) -> float | None:
    rate = figures.timings.prefill_tokens_per_second
    return 1000 * tokens / rate if rate else None


def _strips(facts: DivergenceFacts, width: int) -> list[Line]:
    """The tokens in front of the place in a row, and what follows in two columns."""
    reading = facts.reading
    at = place_of(reading)
    before, old, new = around(reading)
    lines: list[Line] = [()]
    if before:
        first = at - len(before)
        head = f"the same before and now, tokens {fmt.span(first, at)}:"
        lines += [line(Marked(text, "muted")) for text in flow(head, width)]
        lines += _strip(facts, before, width)
    number = len(f"{at + NUM_AROUND:,}")
    column = max(6, (width - number - 6) // 2)
    was = f"read before, {len(reading.history_ids):,} tokens"
    now = f"this turn, {len(reading.prompt_ids):,} tokens"
    indent = " " * (number + 3)
    lines.append(
        line(
            Marked(indent + _cell(was, column), "title"),
            f" {SEPARATOR} ",
            Marked(fmt.shorten(now, column), "title"),
        )
    )
    for index in range(max(len(old), len(new))):
        lines.append(_pair(facts, at + index, (old, new), index, number, column))
    return lines


def _pair(
    facts: DivergenceFacts,
    position: int,
    runs: tuple[TokenIds, TokenIds],
    index: int,
    number: int,
    column: int,
) -> Line:
    old, new = (run[index] if index < len(run) else None for run in runs)
    is_first = index == 0 and old != new and is_left(facts.reading)
    is_same = old == new and not is_left(facts.reading)
    mark: Mark = "cut" if is_first else "muted" if is_same else ""
    ends = "(end)" if facts.reading.history_ids else "(not known)"
    was = _text(facts, old) if old is not None else (ends if index == 0 else "")
    now = _text(facts, new) if new is not None else ""
    return line(
        Marked(f"{'>' if is_first else ' '}{position:>{number},} ", "cut" if is_first else "muted"),
        Marked(("=" if old == new else " ") + _cell(was, column), mark),
        f" {SEPARATOR} ",
        Marked(cut_to(now, column), mark if old is not None else "computed"),
    )


def _cell(text: str, cells: int) -> str:
    cut = cut_to(text, cells)
    return cut + " " * (cells - fmt.width(cut))


def _strip(facts: DivergenceFacts, ids: TokenIds, width: int) -> list[Line]:
    rows: list[list[Marked]] = [[]]
    used = 0
    for token_id in ids:
        text = cut_to(_text(facts, token_id), width - 2) + SEPARATOR
        if used + fmt.width(text) > width:
            rows.append([])
            used = 0
        rows[-1].append(Marked(text, "muted"))
        used += fmt.width(text)
    return [tuple(row) for row in rows]


def _text(facts: DivergenceFacts, token_id: int) -> str:
    piece = facts.pieces.get(token_id)
    return (shown_piece(piece) if piece else "") or f"#{token_id}"


def _joined(facts: DivergenceFacts, ids: TokenIds) -> str:
    return " ".join(_text(facts, token_id) for token_id in ids)


def _place_sentences(facts: DivergenceFacts) -> tuple[str, ...]:
    reading = facts.reading
    before, old, new = around(reading)
    at = place_of(reading)
    if not is_left(reading):
        end = f"The tokens from {at:,} on are {_joined(facts, new)}." if new else ""
        return (end,) if end else ()
    return (
        f"The first token that differs is number {at:,}; before it stands {_joined(facts, before)}."
        if before
        else "The very first token differs.",
        f"Read before: {_joined(facts, old)}.",
        f"Read now: {_joined(facts, new)}.",
    )


def _data(facts: DivergenceFacts, figures: Figures) -> dict[str, Any]:
    reading = facts.reading
    before, old, new = around(reading)
    again, stale = lost_tokens(reading, figures)
    return {
        "outcome": figures.cache.outcome,
        "reason": figures.cache.reason,
        "detail": figures.cache.detail,
        "is_different": is_left(reading),
        "position": place_of(reading),
        "cut": figures.cached_tokens,
        "before": _listed(facts, before),
        "read_before": _listed(facts, old),
        "read_now": _listed(facts, new),
        "compared_with": "the line that was left"
        if figures.cache.reason in LEFT_LINE
        else "the history of the turn",
        "not_known": reading.no_history or None,
        "cost": {
            "computed_tokens": figures.computed_tokens,
            "prefill_ms": figures.timings.prefill_ms,
            "computed_again_tokens": again,
            "computed_again_ms": _cost_ms(again, figures),
            "left_behind_tokens": stale,
        },
        "avoid": None if figures.cache.outcome == "hit" else AVOIDING[figures.cache.reason],
    }


def _listed(facts: DivergenceFacts, ids: TokenIds) -> list[dict[str, Any]]:
    listed = []
    for token_id in ids:
        piece = facts.pieces.get(token_id)
        listed.append({"id": token_id, "text": piece.text if piece else None})
    return listed
