"""What is said of a turn that a server answered: its figures, its price, and who reads along.

Owns these words for the screen, plain mode and the shell. A figure that the server did not give is
left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chatcache import formatting as fmt

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo, TurnPrice
    from chatcache.frontend.figures import Figures

NO_SEGMENTS = "A server keeps its own cache: there are no segments of this model here."
FIRST_TURN = (
    "A server answers, and keeps its own cache. What it tells of it is shown here. "
    "What models of this machine have read is kept for when you switch back."
)
NO_LENS = "A server reads this chat: what of it is in its cache, only the server knows."
_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}


def privacy_words(info: ModelInfo) -> str:
    """Who gets to read the messages; "" when they stay on this machine."""
    leaves = info.backend == "remote" and info.namespace_fields.get("soft.reach") == "network"
    return info.description if leaves else ""


def reuse_words(figures: Figures) -> list[str]:
    """The first parts of the line below an answer: `○ server`, `4,812 prompt, 4,096 cached`."""
    counts = [f"{figures.prompt_tokens:,} prompt"] if figures.prompt_tokens else []
    if figures.server_cached_tokens is not None:
        counts.append(f"{figures.server_cached_tokens:,} cached")
    return ["○ server", *([", ".join(counts)] if counts else [])]


def price_words(price: TurnPrice) -> str:
    """`$0.0042`, with what the server's cache made cheaper: `$0.0042 (saved $0.0011)`."""
    if price.total is None:
        return "cost unknown"
    words = money(price.total, price.currency)
    return f"{words} (saved {money(price.saved, price.currency)})" if price.saved else words


def money(amount: float, currency: str) -> str:
    """An amount to two digits that mean something: `$1.20`, `$0.0042`, `0.35 CHF`."""
    decimals = 2
    while decimals < 8 and 0 < amount < 10 ** (1 - decimals):
        decimals += 1
    text = f"{amount:,.{decimals}f}"
    sign = _SIGNS.get(currency)
    return f"{sign}{text}" if sign else f"{text} {currency}"


def totals(answers: Sequence[Figures]) -> list[str]:
    """What servers did over a whole chat; [] when none answered."""
    if not answers:
        return []
    prompt = sum(one.prompt_tokens for one in answers)
    cached = [one.server_cached_tokens for one in answers if one.server_cached_tokens is not None]
    lines = []
    if prompt:
        there = f", {sum(cached):,} of them cached there" if cached else ""
        lines.append(f"{prompt:,} prompt tokens at servers{there}")
    if (price := total_price(answers)) is not None:
        lines.append(f"{price_words(price)} by the prices of the profile")
    return lines


def model_lines(info: ModelInfo) -> list[str]:
    """A server's model, as far as it tells of it."""
    facts = [f"{fmt.one_line(info.model)} at {fmt.one_line(info.device)}"]
    if info.num_parameters:
        facts.append(f"{fmt.parameters(info.num_parameters)} parameters")
    if info.max_context_tokens:
        facts.append(f"context of {info.max_context_tokens:,} tokens")
    return [", ".join(facts), fmt.one_line(info.description), f"reuse: {info.cut_detail}"]


def total_price(answers: Iterable[Figures]) -> TurnPrice | None:
    """The sum over answers; None when none had a price. Of several currencies the first counts."""
    from chatcache.backends.base import TurnPrice

    prices = [one.price for one in answers if one.price and one.price.total is not None]
    if not prices:
        return None
    currency = prices[0].currency
    same = [price for price in prices if price.currency == currency]
    return TurnPrice(
        currency, sum(one.total or 0.0 for one in same), sum(one.saved or 0.0 for one in same)
    )


def price_from(stored: Mapping[str, Any]) -> TurnPrice | None:
    """The price kept with an answer, in the shape of `ask --json`."""
    if not stored:
        return None
    from chatcache.backends.base import TurnPrice  # the first paint has no price to show

    total, saved = (
        float(value) if isinstance(value := stored.get(name), int | float) else None
        for name in ("total", "saved")
    )
    return TurnPrice(str(stored.get("currency", "")), total, saved)
