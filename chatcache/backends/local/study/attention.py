"""What tokens of a path attended to: the weights that the model gives to each position before them.

Owns the weights of the rows that were asked for last. The tokens are computed once more behind the
K that is kept, by the model's own eager code, which tells its weights; K and V of nothing change.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch

from chatcache.backends.local.model.cut_policy import CutPolicy
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import chunks
from chatcache.backends.local.study.beside import Beside, Footing
from chatcache.backends.local.study.shape import num_heads_of
from chatcache.backends.questions import AskAttention, AttentionRows
from chatcache.errors import UnavailableError, UsageError
from chatcache.formatting import plural, size
from chatcache.token_ids import NO_IDS, TokenIds

MAX_ROWS = 64
MAX_NUMBERS = 1 << 20  # of an answer
MAX_BYTES = 512 << 20  # of all weights of all rows that are asked for at once
KEPT_BYTES = 64 << 20
_TELLING = "eager"  # the attention code of transformers that returns its weights
_CHUNK_BYTES = 64 << 20  # of the weights that are there at once


class AttentionStudy:
    """Answers on one model. `rows[t]` are the weights `[num_layers, num_heads, t + 1]` of the token
    at position t of the path that was asked for last."""

    def __init__(self, model: Any, forward: Forward, beside: Beside, cut: CutPolicy) -> None:
        self._model = model
        self._forward = forward
        self._beside = beside
        self._cut = cut
        config = model.config.get_text_config()
        num_heads = config.num_hidden_layers * max(1, num_heads_of(config))
        self._bytes_per_position = model.dtype.itemsize * num_heads  # of a row, at most
        self._ids = NO_IDS
        self._rows: dict[int, torch.Tensor] = {}

    def forget(self) -> None:
        """Whose weights these are is nobody's business any more."""
        self._ids, self._rows = NO_IDS, {}

    def answer(self, question: AskAttention) -> Generator[None, None, AttentionRows]:
        """Raises UsageError for what cannot be asked, UnavailableError for what cannot be told."""
        self._check(question)
        began = time.perf_counter()
        ids, stop = question.ids[: question.last + 1], question.last + 1
        self._hold(ids)
        missing = [at for at in range(question.first, stop) if at not in self._rows]
        num_computed, num_reused = 0, stop
        if missing:
            footing = yield from self._beside.up_to(ids, missing[0])
            yield from self._compute(ids[: missing[-1] + 1], footing)
            num_reused = footing.num_reused
            num_computed = missing[-1] + 1 - num_reused
        num_layers, num_heads = self._rows[question.last].shape[:2]
        try:
            rows = tuple(self._picked(at, question) for at in range(question.first, stop))
        finally:
            self._shorten(question)
        return AttentionRows(
            first=question.first,
            rows=rows,
            num_layers=num_layers,
            num_heads=num_heads,
            num_computed=num_computed,
            num_reused=num_reused,
            seconds=time.perf_counter() - began,
        )

    def _check(self, question: AskAttention) -> None:
        first, last, num_ids = question.first, question.last, len(question.ids)
        if not 0 <= first <= last < num_ids:
            raise UsageError(
                f"There are no tokens {first} to {last} in a path of {plural(num_ids, 'token')}.",
                f"Choose positions from 0 to {num_ids - 1}.",
            )
        row_bytes = (last + 1) * self._bytes_per_position
        most = min(MAX_ROWS, MAX_NUMBERS // (last + 1), MAX_BYTES // row_bytes)
        if most == 0:
            raise UnavailableError(
                f"All heads of all layers have {size(row_bytes)} of weights on these tokens.",
                "Choose a token that is nearer to the beginning.",
            )
        if last - first + 1 > most:
            raise UsageError(
                f"Attention of {plural(last - first + 1, 'token')} is more than is shown at once.",
                f"Choose at most {most} in a path of this length.",
            )
        if not self._cut.is_cuttable:
            raise UnavailableError(
                f"The K of this model cannot be gone on from: {self._cut.detail}.",
                "Choose another model to see what its tokens attend to.",
            )
        if not any(True for _ in self._beside.live.path.kv.growing):
            raise UnavailableError(
                "This model has no attention: its layers sum the past up in a state.",
                "Choose another model to see what its tokens attend to.",
            )
        most_tokens = self._cut.max_tokens
        if most_tokens is not None and last >= most_tokens:
            raise UnavailableError(
                f"Behind {most_tokens:,} tokens this model reads a path with another embedding of"
                " positions, and K of it is not kept.",
                f"Choose a token before position {most_tokens:,}.",
            )

    def _hold(self, ids: TokenIds) -> None:
        """Rows of another path are of no use: a row depends on all that comes before it."""
        shared = self._ids.common_prefix(ids)
        if shared < len(ids):
            self._ids = ids
            self._rows = {at: row for at, row in self._rows.items() if at < shared}

    def _compute(self, ids: TokenIds, footing: Footing) -> Generator[None, None, None]:
        """Rows of all tokens behind the footing."""
        num_rows = max(1, _CHUNK_BYTES // (len(ids) * self._bytes_per_position))
        if self._cut.is_stepwise:
            num_rows = 1
        for start, stop in chunks(footing.num_tokens, len(ids), num_rows):
            yield
            with self._telling():
                output = self._forward.output(
                    footing.cache, ids[start:stop], start, output_attentions=True
                )
            layers = getattr(output, "attentions", None) or ()
            told = [weights[0] for weights in layers if weights is not None]
            if not told:
                raise UnavailableError(
                    "This model does not tell its attention.", "Choose another model to see it."
                )
            for row, at in enumerate(range(start, stop)):
                weights = torch.stack([layer[:, row, : at + 1] for layer in told])
                self._rows[at] = weights.cpu()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Have attention computed by the code that keeps its weights."""
        model, usual = self._model, self._model.config.get_text_config()._attn_implementation
        if usual == _TELLING:
            yield
            return
        try:
            model.set_attn_implementation(_TELLING)
            yield
        finally:
            model.set_attn_implementation(usual)

    def _picked(self, at: int, question: AskAttention) -> tuple[float, ...]:
        """One row: of a layer and a head, or averaged over them."""
        weights = self._rows[at]
        layers = _chosen("layer", question.layer, weights.shape[0])
        heads = _chosen("head", question.head, weights.shape[1])
        row: list[float] = weights[layers, heads].float().mean(dim=(0, 1)).tolist()
        return tuple(row)

    def _shorten(self, question: AskAttention) -> None:
        """Keep no more than there is memory for: rows that were not asked for go first."""
        num_bytes = sum(row.nbytes for row in self._rows.values())
        order = sorted(self._rows, key=lambda at: question.first <= at <= question.last)
        for at in order:
            if num_bytes <= KEPT_BYTES:
                return
            num_bytes -= self._rows.pop(at).nbytes


def _chosen(what: str, number: int | None, num_all: int) -> slice:
    """One of them, or all. Raises UsageError."""
    if number is None:
        return slice(None)
    if not 0 <= number < num_all:
        raise UsageError(
            f"This model has no {what} {number} that attends.", f"They are 0 to {num_all - 1}."
        )
    return slice(number, number + 1)
