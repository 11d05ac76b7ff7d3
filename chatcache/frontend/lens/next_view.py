"""The scores behind a prompt as probabilities, before and after the settings of the sampling.

Owns the facts of this view, how its settings are changed, and its lines. None of them touches a
row of the cache. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chatcache import formatting as fmt
from chatcache.backends.base import SamplingParams
from chatcache.backends.questions import AskNextTokens, NextToken, NextTokens
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens.fates import basics
from chatcache.frontend.lens.page import Line, Marked, Page, flow, line, page_of
from chatcache.frontend.lens.studied import StudiedTurn
from chatcache.frontend.lens.visible import cut_to, shown_piece

KEYS = "←→ token of the answer · ↑↓ setting · - + change it"
NOT_ONE_ROW = (
    "Changing these settings changes this view, and not one row of the cache: the K and V of a"
    " token do not depend on how it was chosen."
)
ASK_FOR_MODEL = "The scores of the next token are computed by the model, and none is loaded."
NUM_TOP = 10
Setting = Literal["temperature", "top_k", "top_p", "min_p"]
SETTINGS: tuple[Setting, ...] = ("temperature", "top_k", "top_p", "min_p")
# What a setting goes through; the ends are where it stays.
STEPS: Mapping[Setting, tuple[float, ...]] = {
    "temperature": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2),
    "top_k": (0, 1, 2, 3, 5, 10, 20, 40, 100),
    "top_p": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1),
    "min_p": (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
}
OFF: Mapping[Setting, float] = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0}


@dataclass(frozen=True, slots=True)
class NextState:
    """`num_behind` tokens of the answer stand behind the prompt; `setting` is the one that keys
    change. In `sampling` None is what the model's generation config says."""

    num_behind: int = 0
    setting: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)


NextFacts = StudiedTurn[NextTokens]
START = NextState()


def num_behind(reading: TurnReading, state: NextState) -> int:
    return min(max(0, state.num_behind), len(reading.answer_ids))


def question(reading: TurnReading, state: NextState) -> AskNextTokens:
    """What has to be asked of the engine for this view."""
    sampling = state.sampling
    return AskNextTokens(
        reading.prompt_ids + reading.answer_ids[: num_behind(reading, state)],
        NUM_TOP,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )


def press(facts: NextFacts, state: NextState, key: str) -> NextState | None:
    """The state after a key; None: it does nothing here."""
    behind, last = num_behind(facts.reading, state), len(facts.reading.answer_ids)
    moves = {"left": behind - 1, "right": behind + 1, "home": 0, "end": last, "cut": 0}
    if key in moves:
        return replace(state, num_behind=min(max(0, moves[key]), last))
    if key in ("up", "down"):
        setting = state.setting + (-1 if key == "up" else 1)
        return replace(state, setting=setting % len(SETTINGS))
    if key in ("less", "more"):
        name = SETTINGS[state.setting]
        value = _step(name, _value(facts, state, name), 1 if key == "more" else -1)
        changed: Any = {name: int(value) if name == "top_k" else float(value)}
        return replace(state, sampling=replace(state.sampling, **changed))
    return None


def _step(name: Setting, value: float, step: int) -> float:
    """The next value up or down; the ends stay where they are."""
    steps = STEPS[name]
    if step > 0:
        return min((each for each in steps if each > value), default=steps[-1])
    return max((each for each in steps if each < value), default=steps[0])


def _value(facts: NextFacts, state: NextState, name: Setting) -> float:
    """What is set; else what counted when the model was asked; else off."""
    chosen: float | None = getattr(state.sampling, name)
    if chosen is not None:
        return chosen
    return float(getattr(facts.told, name)) if facts.told else OFF[name]


def page(facts: NextFacts, width: int, height: int | None = None, state: NextState = START) -> Page:
    """The height does not matter: it is a short page."""
    reading, told = facts.reading, facts.told
    title = f"Next token in turn {reading.turn} of {reading.num_turns}"
    if (why := facts.problem) or told is None:
        why = why or ASK_FOR_MODEL
        data = {**basics(reading), "unknown": why}
        return page_of(title, (why, NOT_ONE_ROW), width, data, KEYS)
    where = _where(facts, state)
    spread = (
        f"{fmt.plural(told.num_left, 'token')} of the vocabulary can be drawn with the settings;"
        f" before them the choice is open by {told.entropy_bits:.1f} bits (0: certain)"
    )
    last = (f"{spread}.", f"{_cost(told)}.", NOT_ONE_ROW)
    lines: list[Line] = [line(Marked(text, "strong")) for text in flow(f"{where}.", width)]
    lines += _settings_lines(facts, state, width)
    lines += _table(facts, told, state, width)
    lines += [line(Marked(text, "muted")) for words in last for text in flow(words, width)]
    return Page(
        title=title,
        lines=tuple(lines),
        sentences=(f"{where}.", f"{_settings_words(facts, state)}.", *_told(told), *last),
        data={**basics(reading), **_data(facts, told, state)},
        keys=KEYS,
    )


def _where(facts: NextFacts, state: NextState) -> str:
    reading = facts.reading
    behind = num_behind(reading, state)
    position = len(reading.prompt_ids) + behind
    place = f"Scores behind token {position - 1:,}"
    place += f", {fmt.plural(behind, 'token')} into the answer" if behind else ", the prompt's last"
    said = _said(facts, state)
    if said is None:
        return place
    return f"{place}; the model wrote {facts.text_of(said)}"


def _said(facts: NextFacts, state: NextState) -> int | None:
    """The token that really came next."""
    answer, behind = facts.reading.answer_ids, num_behind(facts.reading, state)
    return answer[behind] if behind < len(answer) else None


def _shown_value(facts: NextFacts, state: NextState, name: Setting) -> str:
    value = _value(facts, state, name)
    if name == "temperature" and value == 0:
        return "0 (the most probable)"
    return "off" if value == OFF[name] else f"{value:g}"


def _settings_words(facts: NextFacts, state: NextState) -> str:
    return ", ".join(f"{name} {_shown_value(facts, state, name)}" for name in SETTINGS)


def _settings_lines(facts: NextFacts, state: NextState, width: int) -> list[Line]:
    rows: list[list[Marked]] = [[]]
    used = 0
    for index, name in enumerate(SETTINGS):
        is_chosen = index == state.setting
        text = f"{'>' if is_chosen else ' '}{name} {_shown_value(facts, state, name)}  "
        if used + len(text) > width and rows[-1]:
            rows.append([])
            used = 0
        rows[-1].append(Marked(text, "chosen" if is_chosen else ""))
        used += len(text)
    return [tuple(row) for row in rows]


def _table(facts: NextFacts, told: NextTokens, state: NextState, width: int) -> list[Line]:
    """Rank, token, and a bar with percent before and after the settings."""
    said = _said(facts, state)
    label = max(6, min(22, width // 4))
    bar = max(2, min(24, (width - label - 4 - 2 * 9) // 2))
    head = f"{'':4}{'token':<{label}} {'the model':<{bar + 8}} sampled"
    lines = [line(Marked(head, "title"))]
    most = max((each.probability for each in told.candidates), default=1.0) or 1.0
    most = max(most, *(each.sampled for each in told.candidates)) if told.candidates else most
    for rank, each in enumerate(told.candidates, 1):
        text = cut_to(shown_piece(each.piece) or f"#{each.piece.token_id}", label)
        is_said = each.piece.token_id == said
        lines.append(
            line(
                Marked(f"{'>' if is_said else ' '}{rank:>2} ", "chosen" if is_said else "muted"),
                Marked(text + " " * (label - fmt.width(text)), "strong" if is_said else ""),
                Marked(f" {_bar(each.probability, most, bar)}", "ram"),
                Marked(f"{_percent(each.probability):>7}"),
                Marked(f" {_bar(each.sampled, most, bar)}", "written"),
                Marked(f"{_percent(each.sampled) if each.sampled else 'cut off':>7}"),
            )
        )
    return lines


def _bar(share: float, most: float, cells: int) -> str:
    filled = round(cells * share / most)
    return f"{'█' * (filled or (1 if share > 0 else 0)):<{cells}} "


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _cost(told: NextTokens) -> str:
    took = fmt.duration(1000 * told.seconds)
    computed = fmt.plural(told.num_computed, "token")
    return f"Cost: {computed} computed behind {told.num_reused:,} reused, {took}"


def _told(told: NextTokens) -> list[str]:
    return [
        f"{rank}: {shown_piece(each.piece)}, {_percent(each.probability)}, after the settings"
        f" {_percent(each.sampled) if each.sampled else 'cut off'}."
        for rank, each in enumerate(told.candidates, 1)
    ]


def _data(facts: NextFacts, told: NextTokens, state: NextState) -> dict[str, Any]:
    reading = facts.reading
    return {
        "position": len(reading.prompt_ids) + num_behind(reading, state),
        "written_id": _said(facts, state),
        "settings": {name: _value(facts, state, name) for name in SETTINGS},
        "candidates": [_candidate(each) for each in told.candidates],
        "tokens_left": told.num_left,
        "entropy_bits": told.entropy_bits,
        "cost": {
            "computed_tokens": told.num_computed,
            "reused_tokens": told.num_reused,
            "ms": 1000 * told.seconds,
        },
        "changed_rows": 0,
    }


def _candidate(each: NextToken) -> dict[str, Any]:
    return {
        "id": each.piece.token_id,
        "text": each.piece.text,
        "is_control": each.piece.is_control,
        "logit": each.logit,
        "probability": each.probability,
        "sampled": each.sampled,
    }
