"""Finds out that a server has read only a part of a chat, and has not said so.

A server with a short context may leave the beginning of a conversation out in silence: the model
forgets, and nobody knows why. Its own count of tokens tells: while a path grows, a prompt cannot
shrink. Compared is along one path and one model, so forks and other models make no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatcache.backends.base import ModelInfo, TurnResult
from chatcache.chat import figures
from chatcache.chat.store import SessionStore
from chatcache.chat.tasks import TurnTask

MIN_TOKENS = 1000  # no context is shorter
# A prompt that has grown by so many characters has more tokens.
MIN_GROWN_CHARS = 200
# Contexts are multiples of this; few prompts are.
ROUND = 256
# Where the context is full, fewer tokens than this share of what they should be were counted.
EXPECTED_SHARE = 0.9
MAX_TOKENS_PER_CHAR = 0.5
MAX_CHARS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """What a server was sent, and how much of it was counted."""

    num_chars: int
    num_tokens: int


def remark(store: SessionStore, task: TurnTask, info: ModelInfo, result: TurnResult) -> str:
    """What to say below an answer, once per chat; "" when there is nothing to say."""
    num_tokens = result.usage.prompt_tokens
    if info.backend != "remote" or not num_tokens or num_tokens < MIN_TOKENS:
        return ""
    now = ReadPrompt(sum(len(message.text) for message in task.messages), num_tokens)
    tip = task.question.seq if task.question is not None else task.journal_tip
    return warning([*_read_before(store, tip, info.model), now], info.device)


def _read_before(store: SessionStore, tip: int | None, model: str) -> Iterator[ReadPrompt]:
    """The prompts of the answers that a model gave on a path, in order. Those from before the
    system prompt was changed were other prompts."""
    answers, num_chars, since = store.answers.along(tip), 0, 0
    for stored in store.nodes.path(tip):
        message = stored.node.message
        if message.role == "system":
            since = message.created_ms
        answer = answers.get(stored.seq)
        if answer is not None and message.model == model and message.created_ms >= since:
            read = figures.decode(answer.result_json)
            if read is not None and read.usage.prompt_tokens:
                yield ReadPrompt(num_chars, read.usage.prompt_tokens)
        num_chars += len(message.text)


def warning(prompts: Sequence[ReadPrompt], host: str) -> str:
    """What to say of the last of some prompts, each of which begins with the one before it."""
    if not prompts or not _is_cut(prompts, len(prompts) - 1):
        return ""
    if any(_is_cut(prompts, at) for at in range(len(prompts) - 1)):
        return ""  # it was said then
    num_tokens = prompts[-1].num_tokens
    longer = 4 << (num_tokens - 1).bit_length()
    return (
        f"{host} read only {num_tokens:,} tokens of this chat: it left the rest out without a word."
        f" Ollama does that: start it with OLLAMA_CONTEXT_LENGTH={longer} (or set num_ctx), or go"
        " on in a new chat."
    )


def _is_cut(prompts: Sequence[ReadPrompt], at: int) -> bool:
    now, num_tokens = prompts[at], prompts[at].num_tokens
    if num_tokens < MIN_TOKENS:
        return False
    is_round = num_tokens % ROUND == 0
    if is_round and now.num_chars > MAX_CHARS_PER_TOKEN * num_tokens:
        return True
    if at == 0:
        return False
    before = prompts[at - 1]
    num_grown = now.num_chars - before.num_chars
    if num_tokens == before.num_tokens and is_round and num_grown > 0:
        return True
    if num_grown >= MIN_GROWN_CHARS and before.num_tokens >= num_tokens > before.num_tokens // 2:
        return True
    if not is_round or before.num_tokens < MIN_TOKENS // 2:
        return False
    rate = min(before.num_tokens / max(1, before.num_chars), MAX_TOKENS_PER_CHAR)
    return num_tokens < EXPECTED_SHARE * rate * now.num_chars
