"""What was decided between reading a prefix and computing it, in words with the numbers of it.

The same numbers decide (`cache/book/rates.py`) and are shown; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence

from chatcache.cache.book.entries import RestoreResult
from chatcache.cache.book.rates import Cost, RateBook
from chatcache.cache.views import Held
from chatcache.formatting import duration, plural, size


def declined_words(cost: Cost) -> str:
    """Why it is computed again."""
    return (
        f"reading {size(cost.num_bytes)} would take about {_time(cost.bring_seconds)}, "
        f"computing {plural(cost.num_tokens, 'token')} about {_time(cost.compute_seconds)}"
    )


def read_words(
    rates: RateBook, restored: RestoreResult, held: Sequence[Held], total: int
) -> str | None:
    """How long reading took, and computing would have taken, for a prompt of `total` tokens; None:
    nothing was read, or the latter is not known."""
    took, start = restored.transfers.get("disk"), 0
    for run in restored.runs:
        if run.tier == "disk":
            break
        start = run.stop
    brought = [each for each in held if each.stop <= restored.num_tokens]
    cost = rates.cost(brought, start, total)
    if took is None or cost.compute_seconds is None:
        return None
    return (
        f"reading {size(took.num_bytes)} took {_time(took.seconds)}, "
        f"computing would have taken about {_time(cost.compute_seconds)}"
    )


def _time(seconds: float | None) -> str:
    return duration(None if seconds is None else 1000 * seconds)
