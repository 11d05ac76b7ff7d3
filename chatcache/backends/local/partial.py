"""What is left of a turn whose engine died: the text that was shown."""

from __future__ import annotations

from chatcache.backends.base import (
    CacheReport,
    TextDelta,
    Timings,
    TurnEvent,
    TurnPlanned,
    TurnResult,
    Usage,
)
from chatcache.token_ids import NO_IDS


class PartialAnswer:
    """Takes the events of one turn and makes a result of them that can be kept.

    The ids of the answer died with the engine: the result has none, so the next turn reads the
    text again.
    """

    def __init__(self) -> None:
        self._planned: TurnPlanned | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._num_tokens = 0

    def note(self, event: TurnEvent) -> None:
        if isinstance(event, TurnPlanned):
            self._planned = event
        elif isinstance(event, TextDelta):
            (self._reasoning if event.is_reasoning else self._text).append(event.text)
            self._num_tokens = max(self._num_tokens, event.num_tokens)

    def result(self) -> TurnResult | None:
        """The partial answer; None when nothing had been shown."""
        plan = self._planned
        if plan is None or not (self._text or self._reasoning):
            return None
        usage = Usage(
            prompt_tokens=plan.prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_ram_tokens=plan.cached_ram_tokens,
            cached_disk_tokens=plan.cached_disk_tokens,
        )
        report = CacheReport(
            outcome="partial" if usage.cached_tokens else "miss",
            reason=plan.reason,
            diverged_at=usage.cached_tokens,
            detail=plan.detail,
        )
        return TurnResult(
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            finish_reason="stopped",
            answer_ids=NO_IDS,
            usage=usage,
            timings=Timings(None, None, None, None, None, None),
            cache=report,
        )
