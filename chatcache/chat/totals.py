"""What all answers together have reused, saved and written, from the figures kept with them.

Answers of servers do not count: what those reused is in their cache, not in this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chatcache.chat.database import Database

# A path that got another system prompt is a copy; DISTINCT counts the answer on it once.
_ANSWERS = """
    WITH answered AS (
        SELECT DISTINCT n.created_ms, n.role, n.text, a.result
        FROM answers a JOIN nodes n ON n.seq = a.node
        WHERE json_valid(a.result) AND a.backend = 'local'
    )
    SELECT
        json_extract(result, '$.cache.outcome'),
        COUNT(*),
        TOTAL(json_extract(result, '$.usage.prompt_tokens')),
        TOTAL(json_extract(result, '$.usage.prompt_tokens_details.cached_tokens')),
        TOTAL(json_extract(result, '$.cache.saved_ms')),
        TOTAL(CASE WHEN created_ms >= :since_ms
              THEN json_extract(result, '$.cache.bytes_written') END)
    FROM answered GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class AnswerTotals:
    """Sums over every kept answer. `outcomes`: how many were a hit, partial, miss or off."""

    outcomes: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    saved_ms: float = 0.0
    bytes_written_since: int = 0


def answer_totals(database: Database, since_ms: int) -> AnswerTotals:
    """The totals; `since_ms` (Unix time) is where `bytes_written_since` begins to count."""
    with database.reading() as connection:
        rows = connection.execute(_ANSWERS, {"since_ms": since_ms}).fetchall()
    return AnswerTotals(
        outcomes={outcome: count for outcome, count, *_ in rows if outcome},
        prompt_tokens=int(sum(row[2] for row in rows)),
        cached_tokens=int(sum(row[3] for row in rows)),
        saved_ms=float(sum(row[4] for row in rows)),
        bytes_written_since=int(sum(row[5] for row in rows)),
    )
