"""Idle work: what is computed or restored ahead of a turn, while nobody waits for it.

Owns what of a prompt is certain before it is written to its end, and the book of what was computed
ahead and was of use later. It works in steps: between two of them it ends if it is not wanted any
more. Nothing of an unsent text is ever committed, so nothing of it can reach the disk: it is in the
live KV alone, until a turn uses it or takes its place.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from chatcache.backends.base import Prepare, Prepared, TurnRequest
from chatcache.backends.local.run.any_token import MIN_PART_TOKENS
from chatcache.backends.local.run.live_context import LiveContext
from chatcache.backends.local.run.turn import TurnPlanner
from chatcache.errors import NotFiniteError, UnavailableError
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)

STEP_SECONDS = 0.1  # how long a turn may have to wait for idle work
MIN_CHUNK_TOKENS = 16
_MAX_RUNS = 32
# Two ways in which a message may begin, and two in which it may go on. Ids of a prompt that are the
# same for both do not depend on what is typed next.
_FIRST_WORDS = ("x", "1")
_NEXT_WORDS = (" x", "\n1")


@dataclass(frozen=True, slots=True)
class StablePrompt:
    """The leading ids of a prompt that do not depend on how its last message goes on.

    The first `num_history` of them come before anything that the last message says.
    `is_rewritten`: the template renders the history differently from how it was read.
    """

    ids: TokenIds
    num_history: int
    is_rewritten: bool


class AheadBook:
    """What was computed ahead, until a turn uses it: from a position to the end of ids."""

    def __init__(self) -> None:
        self._runs: deque[tuple[int, TokenIds]] = deque(maxlen=_MAX_RUNS)

    def note(self, ids: TokenIds, start: int, stop: int) -> None:
        if stop > start:
            self._runs.append((start, ids[:stop]))

    def take_used(self, ids: TokenIds, num_reused: int) -> int:
        """How many of the first `num_reused` tokens of a prompt were computed ahead. They count
        once: the runs that they are in are forgotten."""
        used: set[int] = set()
        unused = []
        for start, run_ids in self._runs:
            stop = min(run_ids.common_prefix(ids), num_reused)
            if stop > start:
                used.update(range(start, stop))
            else:
                unused.append((start, run_ids))
        self._runs = deque(unused, maxlen=_MAX_RUNS)
        return len(used)


@dataclass(frozen=True, slots=True)
class IdleWork:
    """Does one `Prepare` at a time on the engine's live context.

    Without `can_compute` (models that may be cut at checkpoints only) it restores and computes
    nothing.
    """

    planner: TurnPlanner
    context: LiveContext
    max_chunk: int
    max_context: int
    can_compute: bool
    ahead: AheadBook = field(default_factory=AheadBook)

    def has_read_history(self, turn: TurnRequest, num_reused: int) -> bool:
        """Whether all that comes before the last message of a turn is among the reused tokens,
        though the template renders it differently from how it was read."""
        if turn.messages[-1].role != "user" or not self.can_compute:
            return False
        prompt = self._stable_prompt(Prepare("", "draft", turn))
        return prompt is not None and num_reused >= prompt.num_history > 0

    def run(
        self, request: Prepare, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, Prepared]:
        """Do the work; yields between its steps. Never raises: what goes wrong here, the turn
        itself will say."""
        began = time.perf_counter()
        done = Prepared(request.prepare_id, request.kind, was_cancelled=not is_wanted())
        if not done.was_cancelled:
            try:
                done = yield from self._work(request, is_wanted, done)
            except UnavailableError as error:
                log.info("idle work ended: %s", error)
                if isinstance(error, NotFiniteError):
                    self.context.path.forget()
            except Exception:
                log.exception("idle work failed")
                self.context.path.forget()
        return replace(done, seconds=time.perf_counter() - began)

    def _work(
        self, request: Prepare, is_wanted: Callable[[], bool], done: Prepared
    ) -> Generator[None, None, Prepared]:
        prompt = self._stable_prompt(request)
        if prompt is None:
            return done
        yield
        if not is_wanted():
            return replace(done, was_cancelled=True)
        if request.kind == "restore":
            return replace(done, tokens_restored=self._restore(prompt))
        before = self.context.path.ids.common_prefix(prompt.ids)
        start = self.context.ready(prompt.ids).num_tokens
        done = replace(done, tokens_restored=max(0, start - before))
        is_draft = request.kind == "draft"
        is_done, stop = yield from self._compute(prompt, start, is_draft, is_wanted)
        self.ahead.note(prompt.ids, start, stop)
        return replace(done, tokens_prefilled=stop - start, was_cancelled=not is_done)

    # what is certain

    def _stable_prompt(self, request: Prepare) -> StablePrompt | None:
        """None when there is nothing to do."""
        turn, text = request.turn, request.turn.messages[-1].text
        if request.kind != "restore" and not self.can_compute:
            return None
        first, second = _NEXT_WORDS if text else _FIRST_WORDS
        plan = self.planner.prompt(_going_on(turn, first))
        is_rewritten = plan.keep < len(turn.journal)
        if request.kind == "next_turn" and not is_rewritten:
            return None
        other = self.planner.prompt(_going_on(turn, second)).ids
        num_stable = plan.ids.common_prefix(other)
        control_ids = self.planner.control_ids
        controls = (at for at in reversed(range(num_stable)) if plan.ids[at] in control_ids)
        num_history = next(controls, -1) + 1
        if request.kind == "next_turn" and num_stable - num_history < MIN_PART_TOKENS:
            # The header of the next message costs nothing, and is computed with it in one piece.
            num_stable = num_history
        if not 0 < num_stable < self.max_context:
            return None
        return StablePrompt(plan.ids[:num_stable], num_history, is_rewritten)

    # the work itself

    def _restore(self, prompt: StablePrompt) -> int:
        """Bring back what segments hold of a path, unless that would lose what is live now."""
        context = self.context
        live = context.path.ids.common_prefix(prompt.ids)
        held = context.estimate(prompt.ids)
        gained = held.ram_tokens + held.disk_tokens - live
        if gained < MIN_PART_TOKENS or not context.can_leave(prompt.ids):
            return 0
        return max(0, context.reuse(prompt.ids, len(prompt.ids)).num_tokens - live)

    def _compute(
        self, prompt: StablePrompt, start: int, is_draft: bool, is_wanted: Callable[[], bool]
    ) -> Generator[None, None, tuple[bool, int]]:
        """Compute from `start` on; (whether all was computed, how far it came).

        What the template has rewritten of the history is committed: it is no unsent text, and the
        next turn begins with it wherever that is asked. It ends at a control token, behind which
        no merge of the tokenizer reaches back, whatever the message begins with.
        """
        stop, is_wanted_still = start, True
        num_history = prompt.num_history if prompt.is_rewritten else 0
        num_kept = num_history if is_draft else len(prompt.ids)
        for end in (num_history, len(prompt.ids)):
            for step in self.context.prefill(prompt.ids[:end], stop, self.chunk(stop)):
                stop = step.done
                is_wanted_still = is_wanted()
                if not is_wanted_still and stop < end:
                    return False, stop
                yield
            if start < end <= num_kept:
                self.context.commit(prompt.ids, (end,))
            if not is_wanted_still:
                break
        return stop >= len(prompt.ids), stop

    def chunk(self, start: int = 0) -> int:
        """Tokens of one step from `start` on: as many as the model reads in STEP_SECONDS, as far as
        is known."""
        num_tokens = self.context.rates.tokens_within(STEP_SECONDS, start)
        return max(MIN_CHUNK_TOKENS, min(self.max_chunk, num_tokens))


def _going_on(turn: TurnRequest, words: str) -> TurnRequest:
    """`turn` with its last message going on with `words`."""
    last = turn.messages[-1]
    return replace(turn, messages=(*turn.messages[:-1], replace(last, text=last.text + words)))
