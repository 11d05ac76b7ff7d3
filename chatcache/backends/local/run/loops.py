"""Notices that a model writes the same over and over.

Deals in token ids only. Lists, tables and rows of numbers repeat themselves, too: what counts is
the same run of tokens, again and again, for longer than anybody reads.
"""

from __future__ import annotations

LOOP_TOKENS = 512
_MIN_TIMES = 4
_CHECK_EVERY = 32  # looking costs about as much as a hundredth of a token of a small model


class LoopWatch:
    """Push the ids of an answer; `num_sound` tells how many came before anything was repeated."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self.num_sound: int | None = None

    def push(self, token_id: int) -> bool:
        """Whether the last tokens are one run, repeated at least four times over LOOP_TOKENS."""
        self._ids.append(token_id)
        if len(self._ids) < LOOP_TOKENS or len(self._ids) % _CHECK_EVERY:
            return False
        period = self._period()
        if period:
            self.num_sound = self._begin(period) + period
        return period > 0

    def _period(self) -> int:
        """The length of the run that the last tokens repeat; 0: they do not."""
        tail = self._ids[-LOOP_TOKENS:]
        for period in range(1, LOOP_TOKENS // _MIN_TIMES + 1):
            if tail[-1] == tail[-1 - period] and tail[period:] == tail[:-period]:
                return period
        return 0

    def _begin(self, period: int) -> int:
        """Where the first run of the loop begins."""
        at = len(self._ids) - LOOP_TOKENS
        while at > 0 and self._ids[at - 1] == self._ids[at - 1 + period]:
            at -= 1
        return at
