"""One engine on ids: turns whose logits are kept, to be compared bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.context import LiveContext, Reuse
from chatcache.backends.local.generate import Forward
from chatcache.cache.kv import LiveKV
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.rates import RateBook
from chatcache.cache.tokens import pack

CHUNK_TOKENS = 8


@dataclass(frozen=True)
class Said:
    """A finished turn: the whole journal, the logits `[steps, vocab]`, and what was reused."""

    ids: list[int]
    answer: list[int]
    logits: torch.Tensor
    reuse: Reuse


class IdsEngine:
    """What the engine process does, on token ids."""

    def __init__(self, model: Any, directory: Path, **budgets: Any):
        self.prefixes = PrefixCache(
            directory,
            "equivalence",
            **{"ram_budget": 1 << 30, "disk_budget": 1 << 30, **budgets},
        )
        self.prefixes.open({})
        self.live = LiveKV(model.config.num_hidden_layers, torch.float32, torch.device("cpu"))
        forward = Forward(model, torch.device("cpu"))
        self.context = LiveContext(forward, self.live, self.prefixes, RateBook(), CHUNK_TOKENS)

    def turn(
        self, prompt: Sequence[int], num_answer: int, *, is_cold: bool = False, is_kept: bool = True
    ) -> Said:
        """Answer greedily with `num_answer` tokens, then close the turn as the engine does."""
        packed, reuse = pack(prompt), Reuse(0)
        if is_cold:
            self.context.start_cold()
        else:
            reuse = self.context.reuse(packed, len(prompt) - 1)
        for step in self.context.prefill(packed, prompt, reuse.num_tokens):
            logits = step.logits
        kept, answer = [logits], [int(logits.argmax())]
        while len(answer) < num_answer:
            logits = self.context.step(answer[-1], len(prompt) + len(answer) - 1)
            kept.append(logits)
            answer.append(int(logits.argmax()))
        self.context.step(answer[-1], len(prompt) + num_answer - 1)
        ids = [*prompt, *answer]
        if is_kept:
            self.context.commit(pack(ids), [len(prompt), len(ids)])
        else:
            self.context.forget()
        return Said(ids, answer, torch.cat(kept), reuse)

    def forget_live(self) -> None:
        self.context.forget()

    def close(self) -> None:
        self.prefixes.close()
