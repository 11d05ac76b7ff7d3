"""What the fake backend is made of: a tokenizer of characters, a template, figures, gates.

Decides nothing and keeps nothing; `tests.fakes` has the backend.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from chatcache.backends.base import (
    CacheReport,
    ChatMessage,
    FinishReason,
    ModelInfo,
    Outcome,
    Reason,
    Timings,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.token_ids import TokenIds

ROLE_IDS = {"system": 1, "user": 2, "assistant": 3}
END_ID = 4
THINK_ID, THINK_END_ID = 5, 6
FIRST_TEXT_ID = 16
BYTES_PER_TOKEN = 128
MS_PER_COMPUTED_TOKEN = 1.0
MS_PER_CACHED_TOKEN = 0.01


class Gate:
    """A point where the backend waits: `arrived` is set when it gets there, `open()` lets it go."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self._is_open = threading.Event()

    def open(self) -> None:
        self._is_open.set()

    def wait(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Wait until opened or stopped; a safety limit of 30 s keeps a broken test from hanging."""
        self.arrived.set()
        for _ in range(3000):
            if self._is_open.wait(0.01) or is_stopped():
                return


def encode(text: str, tokens_per_char: int = 1) -> list[int]:
    return [ord(char) + FIRST_TEXT_ID for char in text for _ in range(tokens_per_char)]


def fake_model_info(name: str = "fake", **changes: object) -> ModelInfo:
    """What a ready FakeBackend says of itself; `changes` replaces fields."""
    fields = {"weights": f"{name}-weights", "adapter": "", "dtype": "float32", "tokenizer": "chars"}
    info = ModelInfo(
        model=name,
        backend="local",
        architecture="FakeForCausalLM",
        num_parameters=1_234_567,
        dtype="float32",
        device="cpu",
        num_layers=2,
        kv_bytes_per_token=BYTES_PER_TOKEN,
        max_context_tokens=1 << 24,
        cut="any_token",
        cut_detail="full attention in all 2 layers",
        tokenizer_id="chars",
        namespace=f"ns-{name}",
        namespace_fields=fields,
        description="repeats what you say",
        load_ms=12.0,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


@dataclass
class ToyTurn:
    """One turn while it runs."""

    request: TurnRequest
    prompt: list[int] = field(default_factory=list)
    keep: int = 0
    num_ram: int = 0
    num_disk: int = 0
    outcome: Outcome = "miss"
    reason: Reason = "cold_start"
    detail: str = ""
    text: str = ""
    reasoning: str = ""
    answer_ids: list[int] = field(default_factory=list)
    num_system: int = 0
    is_stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def num_cached(self) -> int:
        return self.num_ram + self.num_disk

    def explain(self, info: ModelInfo) -> None:
        """Say what was reused, and why not more."""
        request, num_cached = self.request, self.num_cached
        previous = request.previous
        if not request.use_cache:
            self.outcome, self.reason = "off", "disabled"
        elif previous and previous.cause and self._leaves(previous.journal):
            self.outcome, self.reason = "partial" if num_cached else "miss", previous.cause
        elif num_cached >= self.keep > 0:
            self.outcome, self.reason = "hit", "new_user_turn"
            if self.keep < len(request.journal):
                self.outcome, self.reason = "partial", "template_rewrote_history"
        else:
            self.outcome = "partial" if num_cached else "miss"
            self.reason = "evicted" if self.keep else "cold_start"
            if previous and dict(previous.namespace) != dict(info.namespace_fields):
                self.reason = "model_changed"
        why = self.reason.replace("_", " ")
        self.detail = f"{num_cached:,} of {len(self.prompt):,} tokens reused ({why})."

    def _leaves(self, journal: TokenIds) -> bool:
        return journal.common_prefix(TokenIds(self.prompt)) < len(journal)

    def result(self, finish: FinishReason) -> TurnResult:
        """What came of it, with figures that obey the identities."""
        usage = Usage(len(self.prompt), len(self.answer_ids), self.num_ram, self.num_disk)
        restore = usage.cached_tokens * MS_PER_CACHED_TOKEN
        prefill = usage.computed_tokens * MS_PER_COMPUTED_TOKEN
        decode = float(len(self.answer_ids))
        cold = usage.prompt_tokens * MS_PER_COMPUTED_TOKEN
        return TurnResult(
            text=self.text,
            reasoning=self.reasoning or None,
            finish_reason=finish,
            answer_ids=TokenIds(self.answer_ids),
            usage=usage,
            timings=Timings(
                restore, prefill, restore + prefill, decode, 1000.0 / MS_PER_COMPUTED_TOKEN, 1000.0
            ),
            cache=CacheReport(
                outcome=self.outcome,
                reason=self.reason,
                diverged_at=usage.cached_tokens,
                detail=self.detail,
                estimated_cold_ttft_ms=cold,
                saved_ms=cold - restore - prefill,
                bytes_read=usage.cached_disk_tokens * BYTES_PER_TOKEN,
                bytes_written=(usage.computed_tokens + len(self.answer_ids)) * BYTES_PER_TOKEN
                if self.request.use_cache
                else 0,
                is_estimate_measured=usage.computed_tokens >= 64,
                system_tokens=self.num_system,
            ),
        )


def render(
    messages: Sequence[ChatMessage], tokens_per_char: int = 1, *, is_continued: bool = False
) -> list[int]:
    """The toy template: role, text, end; reasoning is left out of the history."""
    ids: list[int] = []
    for message in messages:
        ids += [ROLE_IDS[message.role], *encode(message.text, tokens_per_char), END_ID]
    return ids[:-1] if is_continued else [*ids, ROLE_IDS["assistant"]]


def split_words(text: str) -> list[str]:
    """The pieces in which an answer is streamed: words with the white space behind them."""
    return re.findall(r"\S+\s*|\s+", text)
