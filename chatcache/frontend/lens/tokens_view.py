"""The prompt of a turn as the model saw it, token by token, and what became of each.

Owns the facts of this view, where one can go in it, and its lines. Only the lines around the chosen
token are laid out: a long prompt costs no more than a short one. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chatcache import formatting as fmt
from chatcache.backends.questions import DescribeTokens, TokenPiece, TokenPieces
from chatcache.chat.readings import TurnReading
from chatcache.frontend.figures import reason_words
from chatcache.frontend.lens.fates import (
    WORDS,
    Fate,
    FateRun,
    basics,
    fate_runs,
    is_order_known,
    message_at,
    message_words,
    run_at,
    run_words,
)
from chatcache.frontend.lens.page import Line, Marked, Page, flow, line, page_of, wrapped
from chatcache.frontend.lens.token_rows import Outline, TokenRow, moved_token, outline
from chatcache.frontend.lens.visible import part_bytes, shown, shown_piece

KEYS = "←→ token · ↑↓ line · PgUp PgDn message · c cut · f fold · i ids"
LEGEND = "│ ends a token  ·↵→ white space  <E2> part of a character  X: control  [ ] chosen"
ASK_FOR_MODEL = "Tokens are shown by their ids until the model is loaded."
MIN_ROWS = 4
MOST_PARTS = 4  # a character has four bytes at most


@dataclass(frozen=True, slots=True)
class TokensFacts:
    """`pieces` are what the ids of the turn stand for; none while no model is loaded.
    `num_control` of its tokens are control tokens; None while that is not known."""

    reading: TurnReading
    pieces: Mapping[int, TokenPiece] = field(default_factory=dict)
    num_control: int | None = None


@dataclass(frozen=True, slots=True)
class TokensState:
    """`chosen` is a position; None: the cut. `is_folded`: of the runs of one fate only that of the
    chosen token is spread out."""

    chosen: int | None = None
    shows_ids: bool = False
    is_folded: bool = True


START = TokensState()


def question(reading: TurnReading) -> DescribeTokens:
    """What has to be asked of the engine for this view."""
    return DescribeTokens(reading.ids)


def tokens_facts(reading: TurnReading, answer: TokenPieces | None) -> TokensFacts:
    """`answer` is that to `question`; None: nobody could be asked."""
    if answer is None:
        return TokensFacts(reading)
    pieces = {piece.token_id: piece for piece in answer.pieces}
    control_ids = {piece.token_id for piece in answer.pieces if piece.is_control}
    return TokensFacts(reading, pieces, sum(token in control_ids for token in reading.ids))


def cut_of(reading: TurnReading) -> int:
    """Where reuse ended: the first token that was computed."""
    return next((run.start for run in fate_runs(reading) if run.fate == "computed"), 0)


def chosen_of(facts: TokensFacts, state: TokensState) -> int:
    last = max(0, len(facts.reading.ids) - 1)
    chosen = cut_of(facts.reading) if state.chosen is None else state.chosen
    return min(max(0, chosen), last)


def press(facts: TokensFacts, state: TokensState, key: str, width: int) -> TokensState | None:
    """The state after a key; None: it does nothing here."""
    chosen = chosen_of(facts, state)
    if key == "ids":
        return replace(state, shows_ids=not state.shows_ids)
    if key == "mode":
        return replace(state, is_folded=not state.is_folded)
    if key == "cut":
        return replace(state, chosen=None)
    if key in ("up", "down"):
        rows = _outline(facts, state, width)
        return replace(state, chosen=rows.beside(chosen, -1 if key == "up" else 1))
    place = moved_token(key, chosen, facts.reading)
    return None if place is None else replace(state, chosen=place)


def page(
    facts: TokensFacts, width: int, height: int | None = None, state: TokensState = START
) -> Page:
    """Without a height all tokens are drawn."""
    reading = facts.reading
    title = f"Tokens of turn {reading.turn} of {reading.num_turns}"
    if not reading.prompt_ids:
        data = {**_basics(facts), "unknown": reading.unknown}
        return page_of(title, _without_ids(reading), width, data)
    chosen = chosen_of(facts, state)
    top = _top(facts, width)
    bottom = _bottom(facts, chosen, width)
    room = None if height is None else max(MIN_ROWS, height - len(top) - len(bottom))
    drawn, rows = _outline(facts, state, width).window(chosen, room)
    return Page(
        title=title,
        lines=(*top, *drawn, *bottom),
        sentences=_sentences(facts, chosen),
        data=_data(facts, rows),
        keys=KEYS,
    )


def _without_ids(reading: TurnReading) -> tuple[str, ...]:
    """What the figures tell of a turn whose ids are not known."""
    figures = reading.figures
    if figures is None or figures.is_remote:
        return (reading.unknown,)
    counts: tuple[tuple[int, Fate], ...] = (
        (figures.cached_ram_tokens, "ram"),
        (figures.cached_disk_tokens, "disk"),
        (figures.computed_tokens, "computed"),
        (figures.completion_tokens, "written"),
    )
    words = ", ".join(f"{number:,} {WORDS[fate]}" for number, fate in counts if number)
    prompt = fmt.plural(figures.prompt_tokens, "token")
    return f"{prompt} in the prompt: {words}.", _cut_sentence(reading), reading.unknown


def _outline(facts: TokensFacts, state: TokensState, width: int) -> Outline:
    return outline(
        ids=facts.reading.ids,
        pieces=facts.pieces,
        runs=fate_runs(facts.reading),
        messages=facts.reading.messages,
        chosen=chosen_of(facts, state),
        width=width,
        shows_ids=state.shows_ids,
        is_folded=state.is_folded,
    )


def _top(facts: TokensFacts, width: int) -> list[Line]:
    reading = facts.reading
    tally = [Marked(_tally_words(run), run.mark) for run in _tallied(facts)]
    if facts.num_control is not None:
        tally.append(Marked(f"X {facts.num_control:,} control", "control"))
    lines = wrapped(tally, width)
    lines += [line(Marked(text, "cut")) for text in flow(_cut_sentence(reading), width)]
    if not is_order_known(reading):
        lines += [line(Marked(text, "muted")) for text in flow(_order_sentence(reading), width)]
    return lines


def _bottom(facts: TokensFacts, chosen: int, width: int) -> list[Line]:
    lines = [line(Marked(text, "strong")) for text in flow(_token_sentence(facts, chosen), width)]
    help_text = LEGEND if facts.pieces else ASK_FOR_MODEL
    return lines + [line(Marked(text, "muted")) for text in flow(help_text, width)]


def _tallied(facts: TokensFacts) -> list[FateRun]:
    """One run per fate, with all its tokens."""
    sums: dict[Any, int] = {}
    for run in fate_runs(facts.reading):
        sums[run.fate] = sums.get(run.fate, 0) + run.num_tokens
    return [FateRun(0, number, fate) for fate, number in sums.items()]


def _counts_sentence(facts: TokensFacts) -> str:
    counts = [f"{run.num_tokens:,} {WORDS[run.fate]}" for run in _tallied(facts)]
    words = f"{fmt.plural(len(facts.reading.prompt_ids), 'token')} in the prompt"
    if facts.num_control is not None:
        counts.append(f"{fmt.plural(facts.num_control, 'control token')} among them")
    return f"{words}: {', '.join(counts)}"


def _tally_words(run: FateRun) -> str:
    return f"{run.letter} {run.num_tokens:,} {WORDS[run.fate].removesuffix(' by the model')}"


def _cut_sentence(reading: TurnReading) -> str:
    figures = reading.figures
    if figures is None:
        return "This turn has no answer: how it was read is not recorded."
    words = f"Cut at token {figures.cached_tokens:,}: {reason_words(figures.cache.reason)}"
    if figures.cache.detail:
        words += f"; {figures.cache.detail.rstrip('.')}"
    if figures.cache.ahead_tokens:
        ahead = fmt.plural(figures.cache.ahead_tokens, "reused token")
        words += f"; {ahead} had been computed ahead, while nobody waited"
    return words + "."


def _order_sentence(reading: TurnReading) -> str:
    figures = reading.figures
    ram, disk = (figures.cached_ram_tokens, figures.cached_disk_tokens) if figures else (0, 0)
    return f"R/D: {ram:,} from RAM and {disk:,} from disk, order not recorded."


def _token_sentence(facts: TokensFacts, position: int) -> str:
    reading = facts.reading
    ids = reading.ids
    run, message = run_at(fate_runs(reading), position), message_at(reading.messages, position)
    words = [f"Token {position:,} of {len(ids):,}: {_quoted(facts, position)}"]
    words.append(f"id {ids[position]}")
    if run is not None:
        words.append(WORDS[run.fate])
    if message is not None:
        words.append(message_words(message))
    return ", ".join(words)


def _quoted(facts: TokensFacts, position: int) -> str:
    piece = facts.pieces.get(facts.reading.ids[position])
    if piece is None:
        return "text not known"
    whole = _split_character(facts, position) if piece.is_part else ""
    return (shown_piece(piece) or "nothing visible") + (f", a part of {whole}" if whole else "")


def _split_character(facts: TokensFacts, position: int) -> str:
    """The characters that a token is a part of, with the tokens beside it; "" for none."""
    first = max(0, position - MOST_PARTS)
    near = facts.reading.ids[first : position + MOST_PARTS + 1]
    raw = [part_bytes(facts.pieces.get(token_id)) for token_id in near]
    at = position - first
    begin = sum(len(part) for part in raw[:at])
    end = begin + len(raw[at])
    place, found = 0, ""
    for character in b"".join(raw).decode("utf-8", "surrogateescape"):
        stop = place + len(character.encode("utf-8", "surrogateescape"))
        if place < end and stop > begin and character.isprintable():
            found += shown(character)
        place = stop
    return found


def _sentences(facts: TokensFacts, chosen: int) -> tuple[str, ...]:
    reading = facts.reading
    order = () if is_order_known(reading) else (_order_sentence(reading),)
    return (
        f"{_counts_sentence(facts)}.",
        *(f"{run_words(run, reading.messages)}." for run in fate_runs(reading)),
        *order,
        _cut_sentence(reading),
        f"{_token_sentence(facts, chosen)}.",
    )


def _basics(facts: TokensFacts) -> dict[str, Any]:
    reading = facts.reading
    return {
        "session_id": reading.session_id,
        **basics(reading),
        "model": reading.model,
    }


def _data(facts: TokensFacts, rows: list[TokenRow]) -> dict[str, Any]:
    reading, figures = facts.reading, facts.reading.figures
    runs = fate_runs(reading)
    return {
        **_basics(facts),
        "prompt_tokens": len(reading.prompt_ids),
        "completion_tokens": len(reading.answer_ids),
        "counts": {run.fate: run.num_tokens for run in _tallied(facts)},
        "control_tokens": facts.num_control,
        "is_order_recorded": is_order_known(reading),
        "runs": [{"start": run.start, "stop": run.stop, "fate": run.fate} for run in runs],
        "messages": [
            {
                "start": run.start,
                "stop": run.stop,
                "messages": [{"turn": turn, "role": role} for turn, role in run.roles],
            }
            for run in reading.messages
        ],
        "cut": {
            "position": cut_of(reading),
            "reason": figures.cache.reason if figures else None,
            "detail": figures.cache.detail if figures else None,
        },
        "ahead_tokens": figures.cache.ahead_tokens if figures else None,
        "tokens": list(_token_data(facts, rows)),
    }


def _token_data(facts: TokensFacts, rows: list[TokenRow]) -> Iterator[dict[str, Any]]:
    ids, runs = facts.reading.ids, fate_runs(facts.reading)
    for row in rows:
        for position, token_id in enumerate(ids[row.positions.start : row.positions.stop]):
            piece = facts.pieces.get(token_id)
            found = run_at(runs, row.positions.start + position)
            yield {
                "position": row.positions.start + position,
                "id": token_id,
                "text": piece.text if piece else None,
                "fate": found.fate if found else None,
                "is_control": piece.is_control if piece else None,
                "is_part": piece.is_part if piece else None,
            }
