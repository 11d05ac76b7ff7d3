"""Whether a model has room in memory: what it needs against what there is, and the words for it.

Pure: numbers come in, a verdict and sentences go out. What a model needs is counted in `needs`,
what the machine has in `chatcache.machine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chatcache.formatting import model_name, size
from chatcache.machine import MemoryLimit

MIN_CONTEXT_TOKENS = 2048  # a model that has no room for so many is of no use
AMPLE_CONTEXT_TOKENS = 8192  # with room for so many nothing is said
MIN_BUDGET_BYTES = 64 << 20
OVERRIDE = "--no-fit-check loads it all the same."
_4BIT_BYTES_PER_WEIGHT = 0.6

Verdict = Literal["fits", "tight", "too large"]


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of a model in one kind of memory.

    `held` is taken while it loads and runs. `mapped` is read from files, which the system may drop
    and read again. `bytes_per_token` are K and V, of at most `max_tokens`."""

    held: int
    mapped: int = 0
    bytes_per_token: int = 0
    max_tokens: int = 0

    @property
    def least(self) -> int:
        """What must be there: the weights that are held, and a short context."""
        return self.held + self.bytes_per_token * min(self.max_tokens, MIN_CONTEXT_TOKENS)

    @property
    def weights(self) -> int:
        return self.held + self.mapped

    @property
    def total(self) -> int:
        """With the files that are mapped, which should stay in memory."""
        return self.least + self.mapped


@dataclass(frozen=True, slots=True)
class Fit:
    """A verdict. `limit` is what leaves the least room; None: nothing is known of the memory."""

    verdict: Verdict
    needs: Needs
    limit: MemoryLimit | None = None

    @property
    def room(self) -> int:
        """What is left beside the weights, for K and V."""
        if self.limit is None:
            return 1 << 62
        files = self.needs.mapped if self.limit.counts_files else 0
        return max(0, self.limit.available - self.needs.held - files)

    @property
    def context_tokens(self) -> int:
        """So many tokens of context have room now."""
        per_token, longest = self.needs.bytes_per_token, self.needs.max_tokens
        return min(longest, self.room // per_token) if per_token else longest


@dataclass(frozen=True, slots=True)
class WayOut:
    """Another way to load a model: what to say, and what it needs then."""

    option: str
    needs: Needs


def fit(needs: Needs, limits: Iterable[MemoryLimit]) -> Fit:
    """The verdict of the limit that leaves the least."""
    found = [Fit(_verdict(needs, limit), needs, limit) for limit in limits]
    order: tuple[Verdict, ...] = ("too large", "tight", "fits")
    return min(
        found,
        key=lambda each: (order.index(each.verdict), each.room),
        default=Fit("fits", needs),
    )


def _verdict(needs: Needs, limit: MemoryLimit) -> Verdict:
    must = needs.total if limit.counts_files else needs.least
    if must > limit.available:
        # What other programs hold can be moved out, but not what a model reads for each token.
        can_swap = must <= min(limit.available + limit.swap_bytes, limit.total)
        return "tight" if can_swap and needs.total <= limit.total else "too large"
    if needs.total > limit.total:
        return "too large"
    is_tight = needs.total > limit.available
    return "tight" if is_tight else "fits"


def largest(needs: Needs, limits: Iterable[MemoryLimit]) -> Fit:
    """The verdict if nothing else used the memory: it does not change from one day to the next."""
    return fit(needs, (replace(limit, available=limit.total) for limit in limits))


# words


def problem(name: str, found: Fit) -> str:
    """Why a model that is too large is not loaded."""
    limit, needs = found.limit, found.needs
    assert limit is not None
    needed = max(needs.least, needs.total if limit.counts_files else 0)
    if needed > limit.available:
        return f"{model_name(name)} needs {size(needed)} of memory to be loaded, and {_has(limit)}."
    return (
        f"{model_name(name)} needs {size(needs.total)} of memory, more than the "
        f"{size(limit.total)} of {limit.where}: its file would be read from the disk again for "
        "every token."
    )


def _has(limit: MemoryLimit) -> str:
    free = size(limit.available)
    if limit.where.startswith("the shell"):
        return f"{limit.where} leaves {free}"
    return f"{limit.where} has {free} free of {size(limit.total)}"


def advice(found: Fit, ways: Sequence[WayOut], limits: Sequence[MemoryLimit], others: str) -> str:
    """What then: the other ways to load it that fit, and what holds memory now."""
    fitting = [way for way in ways if fit(way.needs, limits).verdict != "too large"]
    sentences = []
    if fitting:
        told = [f"{way.option} needs about {size(way.needs.total)}" for way in fitting[:3]]
        sentences.append(f"{' and '.join([', '.join(told[:-1]), told[-1]][not told[:-1] :])}.")
    elif found.limit is not None:
        count = int(found.limit.available / _4BIT_BYTES_PER_WEIGHT / 1e9)
        what = f" (in 4 bits up to about {count} B parameters have room)" if count >= 1 else ""
        sentences.append(f"Choose a smaller model or file{what}, or free memory.")
    if others:
        sentences.append(others)
    return " ".join([*sentences, OVERRIDE])


def remark(name: str, found: Fit) -> str:
    """What somebody should know of a model that has just room; "" where there is plenty."""
    limit, needs = found.limit, found.needs
    if limit is None or found.verdict == "too large":
        return ""
    if found.verdict == "tight" and needs.least > limit.available:
        return (
            f"{model_name(name)} needs {size(needs.total)} of memory, and {_has(limit)}: other "
            "programs are moved to the swap, and everything is slow meanwhile."
        )
    if found.verdict == "tight":
        return (
            f"{model_name(name)} needs {size(needs.total)} of memory, and {_has(limit)}: parts of "
            "its file may be read from the disk again while it answers."
        )
    tokens = found.context_tokens
    if tokens < min(needs.max_tokens, AMPLE_CONTEXT_TOKENS):
        return (
            f"Beside {model_name(name)} there is memory for about {tokens:,} of "
            f"{needs.max_tokens:,} tokens of context. --max-context {_round(tokens)} keeps to it."
        )
    return ""


def budget(found: Fit, wanted: int) -> int:
    """How much of `wanted` bytes segments may take beside the model and a short context."""
    left = found.room - found.needs.bytes_per_token * min(
        found.needs.max_tokens, AMPLE_CONTEXT_TOKENS
    )
    return min(wanted, max(left, MIN_BUDGET_BYTES))


def _round(tokens: int) -> int:
    return max(256, tokens // 256 * 256)
