"""One turn step by step: which rows of K and V were there, and which each step added.

Owns the facts of this view, its steps, and its lines. A row is the K and V of one token in all
layers. Without a cache every step would compute all rows before it again; what that would take is
what is saved. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from chatcache import formatting as fmt
from chatcache.backends.questions import ModelShape
from chatcache.chat.readings import TurnReading
from chatcache.frontend.lens.arithmetic import (
    Work,
    formula_bytes,
    keepings,
    latent_bytes,
    num_kv_layers,
    work,
    work_before_each,
)
from chatcache.frontend.lens.fates import FateRun, basics, fate_runs, run_at
from chatcache.frontend.lens.page import Line, Mark, Marked, Page, flow, line, page_of

KEYS = "←→ step · PgUp PgDn ten steps · Home End"
ASK_FOR_MODEL = "Multiplications and bytes are shown when the model is loaded."
StepKind = Literal["reuse", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class GrowthFacts:
    """`shape` is None while no model is loaded."""

    reading: TurnReading
    shape: ModelShape | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Rows `start` to `stop` are there after it, and were not before."""

    kind: StepKind
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


def num_steps(facts: GrowthFacts) -> int:
    return _num_chunks(facts) + _num_reuses(facts) + len(facts.reading.answer_ids)


def step_at(facts: GrowthFacts, index: int) -> Step:
    """Steps: all that is reused; the chunks of the prefill; one for each token of the answer."""
    cached, prompt = _cached(facts), len(facts.reading.prompt_ids)
    if index < _num_reuses(facts):
        return Step("reuse", 0, cached)
    chunk = index - _num_reuses(facts)
    if chunk < _num_chunks(facts):
        size = _chunk(facts)
        start = cached + chunk * size
        return Step("prefill", start, min(prompt, start + size))
    row = prompt + chunk - _num_chunks(facts)
    return Step("decode", row, row + 1)


def _cached(facts: GrowthFacts) -> int:
    figures = facts.reading.figures
    return figures.cached_tokens if figures else 0


def _num_reuses(facts: GrowthFacts) -> int:
    return 1 if _cached(facts) else 0


def _chunk(facts: GrowthFacts) -> int:
    computed = max(1, len(facts.reading.prompt_ids) - _cached(facts))
    return (facts.shape.prefill_chunk if facts.shape else 0) or computed


def _num_chunks(facts: GrowthFacts) -> int:
    return -(-(len(facts.reading.prompt_ids) - _cached(facts)) // _chunk(facts))


def page(facts: GrowthFacts, width: int, height: int | None = None, step: int = 0) -> Page:
    """The height does not matter: it is a short page."""
    reading = facts.reading
    title = f"Growth in turn {reading.turn} of {reading.num_turns}"
    why = reading.unknown
    if not why and reading.figures is None:
        why = "This turn has no answer: how it was read is not recorded."
    if why:
        return page_of(title, (why,), width, {**basics(reading), "unknown": why})
    step = min(max(0, step), num_steps(facts) - 1)
    told = _step_told(facts, step)
    lines: list[Line] = []
    for index, (mark, words) in enumerate(told):
        lines += [line(Marked(text, mark)) for text in flow(words, width)]
        lines += [_bar(facts, step_at(facts, step), width)] if index == 0 else []
    sentences = [words for _, words in told]
    if facts.shape is None:
        lines += [line(Marked(text, "muted")) for text in flow(ASK_FOR_MODEL, width)]
    else:
        lines += [(), *_bytes_lines(facts.shape, reading, width)]
        sentences += _bytes_sentences(facts.shape, reading)
    data = {**basics(reading), **_data(facts, step)}
    return Page(title, tuple(lines), tuple(sentences), data, KEYS)


# one step


def _step_told(facts: GrowthFacts, index: int) -> list[tuple[Mark, str]]:
    step, total = step_at(facts, index), len(facts.reading.ids)
    words = {
        "reuse": f"{_rows(step)} are there: they were reused, and nothing was computed for them",
        "prefill": f"the prefill computes {_rows(step)} in one pass",
        "decode": f"token {step.start - len(facts.reading.prompt_ids) + 1:,} of the answer is read,"
        f" and adds row {step.start:,}",
    }[step.kind]
    marks: dict[StepKind, Mark] = {"reuse": "ram", "prefill": "computed", "decode": "written"}
    told: list[tuple[Mark, str]] = [
        (marks[step.kind], f"Step {index + 1:,} of {num_steps(facts):,}: {words}."),
        (
            "",
            f"Rows of K and V: {step.start:,} were there, {step.num_rows:,} added,"
            f" {step.stop:,} now, {total:,} at the end. No row that was there changes.",
        ),
    ]
    if facts.shape is not None:
        told += _work_told(facts, facts.shape, index)
    return told


def _rows(step: Step) -> str:
    if step.num_rows == 1:
        return f"row {step.start:,}"
    return f"rows {step.start:,} to {step.stop - 1:,}"


def _work_told(facts: GrowthFacts, shape: ModelShape, index: int) -> list[tuple[Mark, str]]:
    step = step_at(facts, index)
    done, saved = step_work(shape, step)
    all_done, all_saved = work_up_to(facts, shape, index)
    here = f"Multiplications of this step: {amount(done.total)}"
    if done.total:
        here += (
            f" ({amount(done.linear)} with weights, {amount(done.attention)} with keys and values)"
        )
    return [
        ("computed", f"{here}; saved by what was there: {amount(saved.total)}."),
        ("", f"Up to here: {amount(all_done.total)} done, {amount(all_saved.total)} saved."),
    ]


def step_work(shape: ModelShape, step: Step) -> tuple[Work, Work]:
    """(done, saved): what the step computes, and what it would have had to compute again of the
    rows before it if they had not been kept. A chunk of a prefill saves what was reused in front
    of all chunks only once, in the step of the reuse."""
    if step.kind == "reuse":
        return Work(), work(shape, step.start, step.stop, num_scored=0)
    if step.kind == "prefill":
        return work(shape, step.start, step.stop, num_scored=1), Work()
    return work(shape, step.start, step.stop), work(shape, 0, step.start, num_scored=0)


def work_up_to(facts: GrowthFacts, shape: ModelShape, index: int) -> tuple[Work, Work]:
    """The sums of `step_work` over all steps to this one."""
    done, saved = Work(), Work()
    first_decode = _num_reuses(facts) + _num_chunks(facts)
    for each in range(min(index + 1, first_decode)):
        more_done, more_saved = step_work(shape, step_at(facts, each))
        done, saved = done + more_done, saved + more_saved
    if index >= first_decode:
        start, num_rows = len(facts.reading.prompt_ids), index + 1 - first_decode
        done += work(shape, start, start + num_rows, num_scored=num_rows)
        saved += work_before_each(shape, start, start + num_rows)
    return done, saved


def amount(number: int) -> str:
    """A count in plain words: `3,200`, `1.4 million`, `5.2 trillion`."""
    units = ((1e15, "quadrillion"), (1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
    for limit, unit in units:
        if number >= 0.99995 * limit:
            return f"{number / limit:,.1f} {unit}"
    return f"{number:,}"


def _bar(facts: GrowthFacts, step: Step, width: int) -> Line:
    """All rows that there will be, those of this step set off, those to come as dots."""
    runs = fate_runs(facts.reading)
    total = max(1, len(facts.reading.ids))
    cells = max(10, width - 2)
    drawn: list[Marked] = [Marked("[", "muted")]
    for cell in range(cells):
        position = min(total - 1, (2 * cell + 1) * total // (2 * cells))
        drawn.append(_bar_cell(run_at(runs, position), position, step))
    drawn.append(Marked("]", "muted"))
    if step.kind == "decode":  # one row may be less than a cell
        at = min(cells - 1, step.start * cells // total)
        drawn[at + 1] = Marked("▲", "chosen")
    return tuple(drawn)


def _bar_cell(run: FateRun | None, position: int, step: Step) -> Marked:
    if run is None or position >= step.stop:
        return Marked("·", "muted")
    letter = run.letter[0]
    if position >= step.start and step.kind != "reuse":
        return Marked("▲", "chosen")
    return Marked(letter, run.mark)


# bytes


def _formula(shape: ModelShape) -> str:
    total = f"{shape.kv_bytes_per_token:,} bytes"
    if shape.latent_dim and latent_bytes(shape) == shape.kv_bytes_per_token:
        numbers = f"one latent of {shape.latent_dim} numbers x {shape.bytes_per_number} bytes"
        return f"A row takes {shape.num_layers} layers x {numbers} = {total}."
    numbers = (
        f"{num_kv_layers(shape)} layers x 2 (K and V) x {shape.num_kv_heads} KV heads x"
        f" {shape.head_dim} numbers x {shape.bytes_per_number} bytes"
    )
    by_formula = formula_bytes(shape, shape.num_kv_heads)
    if by_formula == shape.kv_bytes_per_token:
        return f"A row takes {numbers} = {total}."
    return (
        f"A row takes {total}, as measured; {numbers} would be"
        f" {by_formula:,}, but its layers are not all alike."
    )


def _all_rows(shape: ModelShape, reading: TurnReading) -> str:
    total = len(reading.ids)
    size = fmt.size(total * shape.kv_bytes_per_token)
    return f"The {fmt.plural(total, 'row')} of this turn take {size}."


def _limits(shape: ModelShape) -> list[str]:
    told = []
    windows = [window for window in shape.windows if window]
    if windows:
        told.append(
            f"In {len(windows)} of {shape.num_layers} layers a token looks back {min(windows):,}"
            " tokens at most; the rows stay, so that a chat can be cut anywhere."
        )
    if shape.num_states:
        told.append(
            f"{shape.num_states} of {shape.num_layers} layers keep a state instead, which does not"
            " grow with the chat, and can be gone on from only where a copy was taken."
        )
    return told


def _bytes_lines(shape: ModelShape, reading: TurnReading, width: int) -> list[Line]:
    lines = [line(text) for text in flow(f"{_formula(shape)} {_all_rows(shape, reading)}", width)]
    ways = keepings(shape)
    most = max(1, *(way.num_bytes for way in ways))
    label = max(len(f"{way.name} {way.what}") for way in ways)
    room = max(4, min(40, width - label - 20))
    for way in ways:
        filled = max(1, round(room * way.num_bytes / most)) if way.num_bytes else 0
        text = f"{f'{way.name} {way.what}':<{label}} {fmt.size(way.num_bytes):>7} "
        own = " <" if way.is_own else ""
        mark: Mark = "strong" if way.is_own else ""
        lines.append(line(Marked(text, mark), Marked("█" * filled, "ram"), Marked(own, mark)))
    note = "< this model; each per token, with heads of its width"
    lines += [line(Marked(text, "muted")) for text in flow(note, width)]
    return lines + [line(text) for words in _limits(shape) for text in flow(words, width)]


def _bytes_sentences(shape: ModelShape, reading: TurnReading) -> list[str]:
    ways = [
        f"{way.name} ({way.what}) {fmt.size(way.num_bytes)}{', which it has' * way.is_own}"
        for way in keepings(shape)
    ]
    told = f"Per token, a model of this size would take: {'; '.join(ways)}."
    return [_formula(shape), _all_rows(shape, reading), told, *_limits(shape)]


def _data(facts: GrowthFacts, index: int) -> dict[str, Any]:
    step, shape = step_at(facts, index), facts.shape
    data: dict[str, Any] = {
        "step": index + 1,
        "steps": num_steps(facts),
        "kind": step.kind,
        "rows": {"before": step.start, "added": step.num_rows, "after": step.stop},
        "rows_reused": _cached(facts),
        "rows_computed": len(facts.reading.prompt_ids) - _cached(facts),
        "rows_written": len(facts.reading.answer_ids),
        "multiplications": None,
        "kv_bytes_per_token": None,
        "ways_to_keep": None,
    }
    if shape is not None:
        pairs = zip(
            ("done", "saved", "done_up_to_here", "saved_up_to_here"),
            (*step_work(shape, step), *work_up_to(facts, shape, index)),
            strict=True,
        )
        data["multiplications"] = {
            name: {"linear": each.linear, "attention": each.attention} for name, each in pairs
        }
        data["kv_bytes_per_token"] = shape.kv_bytes_per_token
        data["ways_to_keep"] = [
            {"name": way.name, "bytes_per_token": way.num_bytes, "is_own": way.is_own}
            for way in keepings(shape)
        ]
    return data
