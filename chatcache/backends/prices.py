"""What a server's turn costs by the prices of its profile. Pure."""

from __future__ import annotations

from chatcache.backends.usage import TurnPrice, Usage
from chatcache.remotes import Prices

MILLION = 1e6
DECIMALS = 10


def price_of(usage: Usage, prices: Prices | None) -> TurnPrice | None:
    """What a turn cost. None without prices; its figures are None where tokens are unknown."""
    if prices is None:
        return None
    nothing = TurnPrice(prices.currency, None, None)
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prices.input is None or prices.output is None or prompt is None or completion is None:
        return nothing
    saved = 0.0
    if prices.cached_input is not None:
        if usage.server_cached_tokens is None:
            return nothing  # it may have been cheaper, and nobody says by how much
        saved = usage.server_cached_tokens * (prices.input - prices.cached_input) / MILLION
    total = (prompt * prices.input + completion * prices.output) / MILLION - saved
    return TurnPrice(prices.currency, round(total, DECIMALS), round(saved, DECIMALS))
