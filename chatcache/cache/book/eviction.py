"""Which segments to give up, as a pure function.

Leaves go first, because a segment is useless without its parents. A held one never goes. What has
expired goes before what is merely old, then the least recently used.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One segment of a tier. `last_used` and `expires_at` are Unix times; None never expires."""

    segment_id: str
    parent_id: str | None
    num_bytes: int
    last_used: float
    is_held: bool = False
    expires_at: float | None = None


def choose_victims(
    candidates: Iterable[Candidate], bytes_to_free: int, now: float
) -> list[Candidate]:
    """The segments to evict, in order. Frees at least `bytes_to_free` unless too much is held.

    Every expired segment that is not held is among them, even when `bytes_to_free` is 0.
    """
    by_id = {candidate.segment_id: candidate for candidate in candidates}
    num_children = dict.fromkeys(by_id, 0)
    for candidate in by_id.values():
        if candidate.parent_id in num_children:
            num_children[candidate.parent_id] += 1
    leaves = [
        _rank(candidate, now)
        for candidate in by_id.values()
        if num_children[candidate.segment_id] == 0 and not candidate.is_held
    ]
    heapq.heapify(leaves)
    victims: list[Candidate] = []
    num_freed = 0
    while leaves:
        is_fresh, _, segment_id = leaves[0]
        if is_fresh and num_freed >= bytes_to_free:
            break
        heapq.heappop(leaves)
        victim = by_id[segment_id]
        victims.append(victim)
        num_freed += victim.num_bytes
        parent = by_id.get(victim.parent_id) if victim.parent_id is not None else None
        if parent is not None:
            num_children[parent.segment_id] -= 1
            if num_children[parent.segment_id] == 0 and not parent.is_held:
                heapq.heappush(leaves, _rank(parent, now))
    return victims


def _rank(candidate: Candidate, now: float) -> tuple[bool, float, str]:
    is_fresh = candidate.expires_at is None or candidate.expires_at > now
    return is_fresh, candidate.last_used, candidate.segment_id
