"""The answers that were given, each once, and sums over the figures kept with them.

Owns what counts as one answer, and to which chat it belongs: the one it was given in. What a fork
shares with the chat it came from was answered there. Adds up what was told; a figure that a server
did not give is counted as unknown, and is in no sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chatcache.backends.usage import Figures
from chatcache.chat.database import Database
from chatcache.chat.figures import decode

# A path that got another system prompt is a copy: the answer on it is the first one's. An answer's
# prefix was read last by the answer before it, or by another answer to the same message.
_ANSWERS = """
    SELECT MIN(n.seq), n.session_id, n.model, n.created_ms, a.backend, a.result,
        MAX(
            COALESCE((SELECT p.created_ms FROM nodes q JOIN nodes p ON p.seq = q.parent
                WHERE q.seq = n.parent AND p.role = 'assistant'), 0),
            COALESCE((SELECT MAX(s.created_ms) FROM nodes s WHERE s.parent = n.parent
                AND s.role = 'assistant' AND s.created_ms < n.created_ms), 0)
        )
    FROM answers a JOIN nodes n ON n.seq = a.node
    GROUP BY n.created_ms, n.text, a.result ORDER BY n.created_ms, 1
"""


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """One answer. `session_id` is the chat that it was given in (None: a deleted one); times are
    Unix time in milliseconds. `read_before_ms` is when its history was last read: for the first
    answer of a chat, which may share a beginning with others, when its model last read anything;
    0 for the first of all."""

    session_id: str | None
    model: str
    created_ms: int
    is_local: bool
    figures: Figures
    read_before_ms: int = 0


@dataclass(frozen=True, slots=True)
class ServerTotals:
    """Sums over answers of servers, of what they told. `num_untold` says for each of these counts
    how many answers came without it."""

    num_answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    num_untold: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over answers of models of this machine, and beside them those of servers.

    `outcomes`: how many were a hit, partial, miss or off. `saved_ms` is what a cold start would
    have taken longer, the `restore_ms` of reading already taken off it; `is_measured` is False
    while a part of it rests on a prefill rate that is not measured yet.
    """

    num_answers: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    ram_tokens: int = 0
    disk_tokens: int = 0
    completion_tokens: int = 0
    saved_ms: float = 0.0
    restore_ms: float = 0.0
    is_measured: bool = True
    bytes_written: int = 0
    bytes_read: int = 0
    servers: ServerTotals = ServerTotals()

    @property
    def cached_tokens(self) -> int:
        return self.ram_tokens + self.disk_tokens

    @property
    def computed_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens


def given_answers(database: Database) -> list[GivenAnswer]:
    """All answers that are kept, the oldest first. One whose figures are damaged is left out."""
    with database.reading() as connection:
        rows = connection.execute(_ANSWERS).fetchall()
    answers: list[GivenAnswer] = []
    last_read: dict[str, int] = {}
    for _, session_id, model, created_ms, backend, result, before_ms in rows:
        if (figures := decode(result)) is None:
            continue
        read_before_ms = before_ms or last_read.get(model, 0)
        is_local = backend == "local"
        answers.append(
            GivenAnswer(session_id, model or "", created_ms, is_local, figures, read_before_ms)
        )
        last_read[model] = created_ms
    return answers


def totals(answers: Iterable[GivenAnswer]) -> Totals:
    """The sums over these answers."""
    answers = list(answers)
    local = [answer.figures for answer in answers if answer.is_local]
    return Totals(
        num_answers=len(local),
        outcomes=Counter(figures.cache.outcome for figures in local),
        prompt_tokens=sum(figures.prompt_tokens for figures in local),
        ram_tokens=sum(figures.cached_ram_tokens for figures in local),
        disk_tokens=sum(figures.cached_disk_tokens for figures in local),
        completion_tokens=sum(figures.completion_tokens for figures in local),
        saved_ms=sum(figures.cache.saved_ms or 0.0 for figures in local),
        restore_ms=sum(figures.timings.restore_ms or 0.0 for figures in local),
        is_measured=all(
            figures.cache.is_estimate_measured for figures in local if figures.cache.saved_ms
        ),
        bytes_written=sum(figures.cache.bytes_written for figures in local),
        bytes_read=sum(figures.cache.bytes_read for figures in local),
        servers=_server_totals([answer.figures for answer in answers if not answer.is_local]),
    )


def _server_totals(told: Sequence[Figures]) -> ServerTotals:
    counts = {
        "prompt_tokens": [figures.usage.prompt_tokens for figures in told],
        "cached_tokens": [figures.usage.server_cached_tokens for figures in told],
        "completion_tokens": [figures.usage.completion_tokens for figures in told],
    }
    sums = {name: sum(count or 0 for count in found) for name, found in counts.items()}
    return ServerTotals(
        num_answers=len(told),
        prompt_tokens=sums["prompt_tokens"],
        cached_tokens=sums["cached_tokens"],
        completion_tokens=sums["completion_tokens"],
        num_untold={name: found.count(None) for name, found in counts.items()},
    )
