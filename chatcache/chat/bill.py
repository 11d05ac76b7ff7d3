"""What a hosted model would have asked for answers: pure arithmetic on their figures.

Owns how a turn is billed: prompt tokens that were reused as cached input, those that were computed
as written to the cache, or as plain input where no cache was used. An answer of a server with
prices of its own costs what these say. What nobody told is unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from chatcache.backends.prices import MILLION, price_of
from chatcache.backends.usage import TurnPrice
from chatcache.chat.totals import GivenAnswer
from chatcache.checks import num_seconds
from chatcache.remotes import Remotes
from chatcache.sections import HOSTED_TTLS, BillingSection


@dataclass(frozen=True, slots=True)
class PriceList:
    """Whose prices count: those of a server's profile for its own answers, else `[billing]`."""

    hosted: BillingSection = field(default_factory=BillingSection)
    remotes: Remotes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostedTokens:
    """Tokens by how a hosted model bills them."""

    fresh: int = 0
    written: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: HostedTokens) -> HostedTokens:
        return HostedTokens(
            self.fresh + other.fresh,
            self.written + other.written,
            self.cached + other.cached,
            self.output + other.output,
        )

    @property
    def prompt(self) -> int:
        return self.fresh + self.written + self.cached


@dataclass(frozen=True, slots=True)
class Bill:
    """What answers cost. `tokens` are those billed by `[billing]` with its time to live; `totals`
    has their price for each time to live. `own`: what servers cost by their profiles, and what
    their caches saved, one sum per currency. `num_unknown` answers came without the counts that a
    price needs."""

    prices: BillingSection
    num_answers: int
    tokens: HostedTokens
    totals: Mapping[str, float]
    own: tuple[TurnPrice, ...]
    num_unknown: int

    @property
    def total(self) -> float:
        return self.totals[self.prices.ttl]

    @property
    def uncached(self) -> float:
        """The same without a cache: every prompt token is plain input."""
        plain = HostedTokens(fresh=self.tokens.prompt, output=self.tokens.output)
        return amount(plain, self.prices, self.prices.ttl)


def amount(tokens: HostedTokens, prices: BillingSection, ttl: str) -> float:
    """What tokens cost, in the currency of the prices."""
    inputs = (
        tokens.fresh
        + tokens.written * prices.write_multiplier(ttl)
        + tokens.cached * prices.cached_input_multiplier
    )
    return (inputs * prices.input + tokens.output * prices.output) / MILLION


def bill(answers: Iterable[GivenAnswer], price_list: PriceList) -> Bill:
    """The bill of some answers."""
    prices = price_list.hosted
    own: dict[str, TurnPrice] = {}
    num_unknown = num_billed = 0
    sums: dict[str, HostedTokens] = dict.fromkeys(HOSTED_TTLS, HostedTokens())
    for answer in answers:
        price = _own_price(answer, price_list)
        if price is not None and price.total is not None:
            own[price.currency] = _added(own.get(price.currency), price)
        elif price is not None or not _is_told(answer):
            num_unknown += 1
        else:
            num_billed += 1
            for ttl in HOSTED_TTLS:
                sums[ttl] += _tokens(answer, ttl)
    return Bill(
        prices=prices,
        num_answers=num_billed,
        tokens=sums[prices.ttl],
        totals={ttl: amount(tokens, prices, ttl) for ttl, tokens in sums.items()},
        own=tuple(own.values()),
        num_unknown=num_unknown,
    )


def _own_price(answer: GivenAnswer, price_list: PriceList) -> TurnPrice | None:
    """By the prices of the server's profile, as they were when it answered, or else are now."""
    if answer.is_local or answer.figures.price is not None:
        return answer.figures.price
    profile = price_list.remotes.get(answer.model.partition(":")[0])
    return price_of(answer.figures.usage, profile.prices if profile else None)


def _added(before: TurnPrice | None, price: TurnPrice) -> TurnPrice:
    if before is None:
        return price
    total = (before.total or 0.0) + (price.total or 0.0)
    return replace(before, total=total, saved=(before.saved or 0.0) + (price.saved or 0.0))


def _is_told(answer: GivenAnswer) -> bool:
    usage = answer.figures.usage
    return None not in (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _tokens(answer: GivenAnswer, ttl: str) -> HostedTokens:
    """How the tokens of an answer are billed by a cache that keeps a prefix for `ttl`."""
    usage, output = answer.figures.usage, answer.figures.completion_tokens
    cached, computed = usage.cached_tokens or 0, usage.computed_tokens or 0
    if answer.figures.cache.reason == "disabled":
        return HostedTokens(fresh=computed, output=output)
    age_ms = answer.created_ms - answer.read_before_ms
    is_kept = not answer.is_local or age_ms <= 1000 * (num_seconds(ttl) or 0)
    if is_kept:
        return HostedTokens(written=computed, cached=cached, output=output)
    return HostedTokens(written=computed + cached, output=output)
