"""Why a turn reused what it reused: the outcome, the reason and the sentence of the panel.

`explain` is a pure function of `TurnFacts`, which `TurnExplainer` collects. The order of the
questions is the order of importance to the reader: what was switched off or is impossible, what the
user changed, what the template did, what the cache lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chatcache.backends.base import ModelInfo, Outcome, PreviousTurn, Reason
from chatcache.backends.local.model.cut_policy import CutPolicy
from chatcache.backends.local.run.idle import IdleWork
from chatcache.backends.local.run.turn import Explanation, TurnState
from chatcache.cache.book.namespace import chain_digest, explain_change, is_approximate
from chatcache.cache.files.store import LostSegment
from chatcache.cache.prefix import PrefixCache
from chatcache.formatting import plural
from chatcache.token_ids import TokenIds

MIN_MENTIONED_TOKENS = 16  # less is the template's own beginning, which all conversations share
_MAX_STOPPED = 100  # prompts that were not read to their end


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """Positions and counts of one planned turn. `keep` is how much of the journal the prompt kept;
    `reused` how many leading prompt tokens were not computed; `num_deviating` how many of the
    journal's are kept although the template would write them differently now; `stopped_at` where
    the reading of this very prompt was stopped before; `is_approximate` that what is reused is kept
    as 8-bit integers."""

    prompt_ids: TokenIds
    reused: int
    keep: int
    num_journal: int
    use_cache: bool = True
    cut_problem: str | None = None
    divergence: tuple[Reason, str] | None = None
    num_deviating: int = 0
    previous: PreviousTurn | None = None
    num_matched: int = 0
    declined: str | None = None
    read: str | None = None
    restore_problem: str | None = None
    is_damage: bool = False
    stopped_at: int | None = None
    is_approximate: bool = False

    @property
    def num_prompt(self) -> int:
        return len(self.prompt_ids)

    @property
    def expected(self) -> int:
        """What the history promised: the kept journal, less the one token always computed."""
        return min(self.keep, self.num_prompt - 1)


def explain(
    facts: TurnFacts,
    namespace: str,
    fields: Mapping[str, str],
    damaged: Sequence[LostSegment] = (),
    expired: Sequence[LostSegment] = (),
) -> Explanation:
    """The explanation of a turn that ran in `namespace`, which stands for `fields`."""
    outcome: Outcome = "partial" if facts.reused else "miss"
    counts = f"{facts.num_prompt - facts.reused:,} of {facts.num_prompt:,} tokens are computed"
    counts += _mode_words(facts)
    if not facts.use_cache:
        return Explanation("off", "disabled", f"the cache is off for this turn: {counts}")
    if facts.cut_problem is not None:
        return Explanation(outcome, "not_cuttable", f"{facts.cut_problem}: {counts}")
    found = (
        _changed_namespace(facts, fields)
        or _changed_path(facts)
        or _lost(facts, namespace, damaged, expired)
        or facts.divergence
    )
    if found is None and facts.declined is not None:
        found = "cheaper_to_recompute", facts.declined
    if found is not None:
        return Explanation(outcome, found[0], f"{found[1]}: {counts}")
    is_little = facts.num_journal == 0 and facts.reused < MIN_MENTIONED_TOKENS
    if is_little and (facts.reused or facts.num_matched >= MIN_MENTIONED_TOKENS):
        known = plural(max(facts.reused, facts.num_matched), "leading token")
        shared = f"another conversation shares only {known}"
        return Explanation(outcome, "below_minimum", f"{shared}, too few to pay: {counts}")
    if facts.reused == 0:
        return Explanation("miss", "cold_start", f"nothing like this was read before: {counts}")
    return Explanation("hit", "new_user_turn", _hit_sentence(facts))


def _hit_sentence(facts: TurnFacts) -> str:
    count = facts.num_prompt - facts.reused
    new = f"{count:,} {'is' if count == 1 else 'are'} new"
    if facts.num_journal:
        known = f"all {facts.reused:,} tokens read before were reused"
    else:
        known = f"{facts.reused:,} tokens are shared with another conversation"
    return f"{known}, {new}{_mode_words(facts)}"


def _mode_words(facts: TurnFacts) -> str:
    """What was read, what append mode keeps against the template, and that 8-bit integers are
    approximate."""
    words = "; what is reused is approximate (int8)" if facts.is_approximate else ""
    words += f"; {facts.read}" if facts.read else ""
    if not facts.num_deviating:
        return words
    tokens = plural(facts.num_deviating, "token")
    return f"; append mode keeps {tokens} that the template would write differently now{words}"


def _changed_namespace(facts: TurnFacts, fields: Mapping[str, str]) -> tuple[Reason, str] | None:
    """The history was read by something else. It matters only if it kept tokens from reuse."""
    if facts.previous is None or not facts.previous.namespace:
        return None
    if facts.num_journal and facts.reused >= facts.expected:
        return None
    return explain_change(facts.previous.namespace, fields)


def _changed_path(facts: TurnFacts) -> tuple[Reason, str] | None:
    previous = facts.previous
    if previous is None or previous.cause is None:
        return None
    position = previous.journal.common_prefix(facts.prompt_ids)
    words = "the system prompt" if previous.cause == "system_prompt_changed" else "a turn"
    verb = "changed" if previous.cause == "system_prompt_changed" else "was edited"
    lost = len(previous.journal) - position
    if lost <= 0:
        return None
    return previous.cause, f"{words} {verb} at token {position:,}, {lost:,} tokens after it differ"


def _lost(
    facts: TurnFacts,
    namespace: str,
    damaged: Sequence[LostSegment],
    expired: Sequence[LostSegment],
) -> tuple[Reason, str] | None:
    """The history promised more than was reused: the cache lost it, or a cut did not pay."""
    if facts.reused >= facts.expected:
        return None
    missing = facts.expected - facts.reused
    where = f"from token {facts.reused:,} on ({plural(missing, 'token')})"
    if facts.stopped_at is not None and facts.reused >= facts.stopped_at:
        return "new_user_turn", f"reading was stopped before, and goes on {where}"
    if facts.is_damage:
        return "corrupt", f"a segment was damaged ({facts.restore_problem}), recomputed {where}"
    if facts.declined is not None:
        return "cheaper_to_recompute", f"{facts.declined}, recomputed {where}"
    if facts.restore_problem is None and facts.num_matched >= facts.expected:
        return "cheaper_to_recompute", f"using a part of a segment does not pay {where}"
    for file in damaged:
        if _covers(file, facts, namespace):
            return "corrupt", f"a segment was damaged ({file.problem}), recomputed {where}"
    for file in expired:
        if _covers(file, facts, namespace):
            return "expired", f"a segment {file.problem}, recomputed {where}"
    return "evicted", f"the cache no longer holds the history {where}"


def _covers(file: LostSegment, facts: TurnFacts, namespace: str) -> bool:
    """Whether a damaged file is the one that is missing. Its id covers its ids, so this is exact
    as far as the prompt reaches to its end."""
    if not file.start <= facts.reused < file.stop:
        return False
    ids = facts.prompt_ids[: file.stop]
    if len(ids) < file.stop:
        return False
    return chain_digest(namespace, file.start, ids) == file.segment_id


@dataclass(frozen=True, slots=True)
class TurnExplainer:
    """Explains the turns of one model. `stopped`: prompts, and where reading them was stopped."""

    info: ModelInfo
    cut: CutPolicy
    prefixes: PrefixCache
    idle: IdleWork
    stopped: deque[tuple[TokenIds, int]] = field(default_factory=lambda: deque(maxlen=_MAX_STOPPED))

    def explain(self, state: TurnState) -> Explanation:
        plan, request, reuse = state.plan, state.request, state.reuse
        facts = TurnFacts(
            prompt_ids=plan.ids,
            reused=state.reused,
            keep=plan.keep,
            num_journal=len(request.journal),
            use_cache=request.use_cache,
            cut_problem=self._cut_problem(state),
            divergence=self._divergence(state),
            num_deviating=plan.num_deviating,
            previous=request.previous,
            num_matched=reuse.num_matched,
            declined=reuse.declined,
            read=reuse.read,
            restore_problem=reuse.problem,
            is_damage=reuse.is_damage,
            stopped_at=self._stopped_at(state),
            is_approximate=self.is_approximate(state),
        )
        damaged, expired = self.prefixes.damaged, self.prefixes.expired
        namespace, fields = self.info.namespace, self.info.namespace_fields
        return explain(facts, namespace, fields, damaged, expired)

    def is_approximate(self, state: TurnState) -> bool:
        """Whether what is reused was kept with fewer bits than it was computed with."""
        return state.reused > 0 and is_approximate(self.info.namespace_fields)

    def _divergence(self, state: TurnState) -> tuple[Reason, str] | None:
        """How the template rewrote the history, unless that was read ahead of the turn."""
        diverged = state.plan.diverged
        if diverged is None:
            return None
        is_beyond = state.reused > state.plan.keep
        if is_beyond and self.idle.has_read_history(state.request, state.reused):
            return None
        return diverged.kind, diverged.detail

    def _cut_problem(self, state: TurnState) -> str | None:
        """Why the architecture kept tokens from reuse that are known; None: it did not."""
        if len(state.plan.ids) > (self.cut.max_tokens or len(state.plan.ids)):
            return self.cut.detail
        reuse, expected = state.reuse, min(state.plan.keep, state.limit)
        is_known = reuse.problem is None and reuse.num_matched > reuse.num_tokens
        is_cut = self.cut.needs_states and is_known and reuse.num_tokens < expected
        return self.cut.detail if is_cut or not self.cut.is_cuttable else None

    def _stopped_at(self, state: TurnState) -> int | None:
        """Where reading a prompt that begins like this was stopped, if that is remembered; else
        where the last answer ends, if the journal goes on behind it."""
        for stopped, position in reversed(self.stopped):
            if stopped.common_prefix(state.plan.ids) > position:
                return position
        answered = state.request.num_answered
        return answered if answered != len(state.request.journal) else None
