"""What is said of a turn that a server answered: its figures, its price, and who reads along.

Owns these words for the screen, plain mode and the shell. A figure that the server did not give is
left out, never guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatcache import formatting as fmt

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo, TurnPrice

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


def reuse_words(prompt_tokens: int, cached_tokens: int | None) -> list[str]:
    """The first parts of the line below an answer: `○ server`, `4,812 prompt, 4,096 cached`."""
    counts = [f"{prompt_tokens:,} prompt"] if prompt_tokens else []
    if cached_tokens is not None:
        counts.append(f"{cached_tokens:,} cached")
    return ["○ server", *([", ".join(counts)] if counts else [])]


def price_words(price: TurnPrice) -> str:
    """`$0.0042`, with what the server's cache made cheaper: `$0.0042 (saved $0.0011)`."""
    if price.total is None:
        return "cost unknown"
    words = money(price.total, price.currency)
    return f"{words} (saved {money(price.saved, price.currency)})" if price.saved else words


def money(amount: float, currency: str, digits: int = 2) -> str:
    """An amount to `digits` digits that mean something: `$1.20`, `$0.0042`, `0.35 CHF`."""
    decimals = 2
    while decimals < 8 and 0 < amount < 10 ** (digits - 1 - decimals):
        decimals += 1
    text = f"{amount:,.{decimals}f}"
    sign = _SIGNS.get(currency)
    return f"{sign}{text}" if sign else f"{text} {currency}"


def model_lines(info: ModelInfo) -> list[str]:
    """A server's model, as far as it tells of it."""
    facts = [f"{fmt.one_line(info.model)} at {fmt.one_line(info.device)}"]
    if info.num_parameters:
        facts.append(f"{fmt.parameters(info.num_parameters)} parameters")
    if info.max_context_tokens:
        facts.append(f"context of {info.max_context_tokens:,} tokens")
    return [", ".join(facts), fmt.one_line(info.description), f"reuse: {info.cut_detail}"]
