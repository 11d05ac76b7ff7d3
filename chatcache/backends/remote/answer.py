"""An answer while it arrives: pieces of JSON become events, and in the end a result.

Owns what the fields of a chunk mean, for OpenAI, vLLM, SGLang, llama-server and those like them.
What a server does not tell stays None. Times are those of the client's clock, from the moment the
request went out; the server's own prefill time is taken where it gives one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chatcache.backends.base import (
    CacheReport,
    FinishReason,
    PrefillProgress,
    TextDelta,
    Timings,
    TurnEvent,
    TurnPlanned,
    TurnRequest,
    TurnResult,
    Usage,
)
from chatcache.backends.local.prompt.harmony import TextPiece
from chatcache.backends.prices import price_of
from chatcache.backends.remote.characters import Characters
from chatcache.backends.remote.continuation import Continuation
from chatcache.backends.remote.dialect import Dialect
from chatcache.backends.remote.marks import AnswerMarks
from chatcache.backends.remote.messages import is_continued
from chatcache.remotes import RemoteModel
from chatcache.token_ids import NO_IDS

DONE = "[DONE]"  # the last piece of a stream
NO_REASONS = ("", "null", "None")  # a reason to end, said of every piece
TOO_LONG = ("length", "max_tokens", "MAX_TOKENS", "max_length")
MAX_COUNT = 1 << 40  # no server has read more; such a figure is a mistake
# Where servers put reasoning: DeepSeek and vLLM, OpenRouter and newer vLLM, others.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")


class ServerAnswer:
    """One answer. `began_at` and the times of chunks are of one monotonic clock, in seconds."""

    def __init__(
        self, request: TurnRequest, remote: RemoteModel, began_at: float, dialect: Dialect
    ) -> None:
        self._turn_id = request.turn_id
        self._remote = remote
        self._began_at = began_at
        self._first_at: float | None = None
        self._last_at = began_at
        self._text: list[str] = []
        self._reasoning: list[str] = []
        is_middle = is_continued(request)
        self._continuation = Continuation(
            request.messages[-1].text if is_middle else "",
            is_told="continue_final_message" not in dialect.unknown,
        )
        self._marks = AnswerMarks(
            request, is_middle=is_middle, is_assumed=dialect.thinks_unopened and not is_middle
        )
        self.reasoning_key = ""  # where the server puts reasoning
        self._words, self._thoughts = Characters(), Characters()
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}
        self.finish_said: str | None = None  # the reason, in the words of the server
        self._is_ended = self._is_sorted = False
        self._use_cache = request.use_cache

    @property
    def is_begun(self) -> bool:
        return self._first_at is not None

    @property
    def has_words(self) -> bool:
        """Is there an answer beside what was thought?"""
        return any(self._text)

    @property
    def is_finished(self) -> bool:
        """Did the server say that this was all?"""
        return self.finish_said is not None or self._is_ended

    def planned(self) -> TurnPlanned:
        """The request is on its way; how many tokens it is, the server knows."""
        detail = f"{self._remote.profile.host} was asked; it keeps its own cache"
        return TurnPlanned(self._turn_id, 0, NO_IDS, 0, 0, 0, "remote", detail)

    def take(self, at: float, chunk: dict[str, Any]) -> Iterator[TurnEvent]:
        """Take in what arrived at a time; the events that it means."""
        self._is_ended = self._is_ended or DONE in chunk
        self._usage = _table(chunk.get("usage")) or self._usage
        self._timings = _table(chunk.get("timings")) or self._timings
        if (progress := _table(chunk.get("prompt_progress"))) and not self.is_begun:
            yield from self._progress(progress)
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return
        choice = _table(choices[0])
        delta = _table(choice.get("delta"))
        if not delta and not self.is_begun:  # at the end some say all of it once more
            delta = _table(choice.get("message"))
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason not in NO_REASONS:
            self.finish_said = reason
        reasoning = self._thoughts.push(self._reasoning_of(delta))
        if reasoning:
            self._marks.has_thought()
            yield self._said(at, reasoning, is_reasoning=True)
        told = delta.get("content") or delta.get("refusal") or choice.get("text")
        text = self._continuation.push(self._words.push(_text_of(told)))
        if text:
            yield from self._say(at, self._marks.push(text))

    def finish(self, *, is_whole: bool = True) -> Iterator[TextDelta]:
        """The server has ended: what was held back comes out. `is_whole`: it was not cut off."""
        held = self._marks.push(rest) if (rest := self._continuation.rest()) else []
        is_whole = is_whole and self.finish_said not in TOO_LONG
        yield from self._say(self._last_at, [*held, *self._marks.finish(is_whole=is_whole)])

    def _reasoning_of(self, delta: dict[str, Any]) -> str:
        """Reasoning in a field of its own, or in a part of the content."""
        for key in REASONING_KEYS:
            if text := _text_of(delta.get(key)):
                self.reasoning_key = key
                return text
        parts = delta.get("content")
        if not isinstance(parts, list):
            return ""
        return "".join(_text_of(_table(part).get("thinking")) for part in parts)

    @property
    def thinks_unopened(self) -> bool | None:
        """Did the answer begin with thoughts that no mark opened? None: nothing tells."""
        if self._marks.was_assumed_wrongly:
            return False
        return True if self._marks.reasoning else None

    def _say(self, at: float, pieces: list[TextPiece]) -> Iterator[TextDelta]:
        for piece in pieces:
            yield self._said(at, piece.text, piece.is_reasoning)
        if self._marks.was_assumed_wrongly:  # all of it was given once more, as the answer
            self._reasoning = []
        if self._marks.reasoning is not None and not self._is_sorted:
            # What was taken for the answer was reasoning.
            self._is_sorted = True
            self._reasoning = [self._marks.reasoning] if self._marks.reasoning else self._reasoning
            self._text = [piece.text for piece in pieces if not piece.is_reasoning]

    def _said(self, at: float, text: str, is_reasoning: bool) -> TextDelta:
        self._first_at = self._first_at or at
        self._last_at = at
        (self._reasoning if is_reasoning else self._text).append(text)
        counted = self._completion_tokens or 0
        return TextDelta(self._turn_id, text, is_reasoning, counted)

    def _progress(self, progress: dict[str, Any]) -> Iterator[PrefillProgress]:
        done, total, cached = (_count(progress.get(n)) for n in ("processed", "total", "cache"))
        if done is not None and total:
            yield PrefillProgress(self._turn_id, min(done, total), total, cached or 0)

    # In the end

    def result(self, is_stopped: bool = False) -> TurnResult:
        """What has come so far. `is_stopped`: we or the server ended it early."""
        usage = self._usage_so_far()
        return TurnResult(
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            finish_reason="stopped" if is_stopped else self._finish_reason(),
            answer_ids=NO_IDS,
            usage=usage,
            timings=self._times(usage),
            cache=self._report(usage),
            price=price_of(usage, self._remote.profile.prices),
        )

    def _finish_reason(self) -> FinishReason:
        return "length" if self.finish_said in TOO_LONG else "stop"

    @property
    def _completion_tokens(self) -> int | None:
        counted = _count(self._usage.get("completion_tokens"))
        return counted if counted is not None else _count(self._timings.get("predicted_n"))

    def _usage_so_far(self) -> Usage:
        prompt = _count(self._usage.get("prompt_tokens"))
        computed, cached = (_count(self._timings.get(name)) for name in ("prompt_n", "cache_n"))
        if prompt is None and computed is not None and cached is not None:
            prompt = computed + cached
        details = _table(self._usage.get("prompt_tokens_details"))
        told = (details.get("cached_tokens"), self._usage.get("prompt_cache_hit_tokens"), cached)
        reused = next((count for value in told if (count := _count(value)) is not None), None)
        if reused is not None and prompt is not None:
            reused = min(reused, prompt)
        return Usage(prompt, self._completion_tokens, None, None, reused)

    def _times(self, usage: Usage) -> Timings:
        prefill_ms = _number(self._timings.get("prompt_ms"))
        ttft_ms = decode_ms = rate = None
        if self._first_at is not None:
            ttft_ms = 1000 * (self._first_at - self._began_at)
            decode_ms = 1000 * (self._last_at - self._first_at)
        if decode_ms and usage.completion_tokens and usage.completion_tokens > 1:
            rate = 1000 * (usage.completion_tokens - 1) / decode_ms
        return Timings(
            restore_ms=None,
            prefill_ms=prefill_ms,
            ttft_ms=ttft_ms,
            decode_ms=decode_ms,
            prefill_tokens_per_second=_number(self._timings.get("prompt_per_second")),
            decode_tokens_per_second=rate,
        )

    def _report(self, usage: Usage) -> CacheReport:
        host = self._remote.profile.host
        cached, prompt = usage.server_cached_tokens, usage.prompt_tokens
        if cached is None:
            detail = f"{host} keeps its own cache, and does not say what it reused"
        else:
            of = "" if prompt is None else f" of {prompt:,}"
            detail = f"{host} took {cached:,}{of} prompt tokens from its own cache"
        if not self._use_cache and cached != 0:
            detail += "; it was not switched off from here"
        if self.finish_said == "content_filter":
            detail += "; its content filter ended the answer"
        return CacheReport("off", "remote", cached, detail)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text_of(content: Any) -> str:
    """Text, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(_text_of(_table(part).get("text")) for part in content)
    return content if isinstance(content, str) else ""


def _count(value: Any) -> int | None:
    """A number of tokens; None when there is none, or one that cannot be."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT
    return int(value) if is_count else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < MAX_COUNT else None
