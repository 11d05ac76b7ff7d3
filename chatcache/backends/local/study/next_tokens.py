"""Which tokens may come next behind a path: the model's scores, and what sampling makes of them.

Owns the scores behind the path that was asked for last, so that other settings are answered at
once. How a token is chosen touches no K and V.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator

import torch

from chatcache.backends.base import SamplingParams
from chatcache.backends.local.model.cut_policy import CutPolicy
from chatcache.backends.local.run.sampling import Sampler, with_defaults
from chatcache.backends.local.study.beside import Beside
from chatcache.backends.questions import AskNextTokens, NextToken, NextTokens, TokenPiece
from chatcache.errors import UsageError
from chatcache.token_ids import NO_IDS, TokenIds

MAX_TOKENS = 1000


class NextTokenStudy:
    """`defaults`: the settings of the model's own generation config, for what is not asked for.
    `piece` tells the text of a token."""

    def __init__(
        self,
        beside: Beside,
        cut: CutPolicy,
        defaults: SamplingParams,
        piece: Callable[[int], TokenPiece],
    ) -> None:
        self._beside = beside
        self._cut = cut
        self._defaults = defaults
        self._piece = piece
        self._ids = NO_IDS
        self._logits: torch.Tensor | None = None

    def forget(self) -> None:
        self._ids, self._logits = NO_IDS, None

    def answer(self, question: AskNextTokens) -> Generator[None, None, NextTokens]:
        """Raises UsageError for what cannot be asked."""
        if not 1 <= question.num_tokens <= MAX_TOKENS:
            raise UsageError(
                f"{question.num_tokens:,} tokens cannot be told.", f"Ask for 1 to {MAX_TOKENS:,}."
            )
        began, num_reused = time.perf_counter(), len(question.ids)
        logits = self._logits if question.ids == self._ids else None
        if logits is None:
            logits, num_reused = yield from self._compute(question.ids)
            self._ids, self._logits = question.ids, logits
        return self._told(question, logits, num_reused, began)

    def _compute(self, ids: TokenIds) -> Generator[None, None, tuple[torch.Tensor, int]]:
        """The logits `[1, vocab]` behind the path, and how many of its tokens were held."""
        most = self._cut.max_tokens
        if not self._cut.is_cuttable or (most is not None and len(ids) > most):
            return (yield from self._beside.cold(ids)), 0
        last = len(ids) - 1
        footing = yield from self._beside.up_to(ids, last)
        yield
        forward = self._beside.live.path.forward
        return forward.aside(footing.cache, ids[last:], last), footing.num_reused

    @torch.inference_mode()
    def _told(
        self, question: AskNextTokens, logits: torch.Tensor, num_reused: int, began: float
    ) -> NextTokens:
        params = with_defaults(_asked(question), self._defaults)
        sampler = _sampler(params, question.ids, logits.device)
        own = torch.softmax(logits[0].float(), dim=-1)
        sampled = sampler.probabilities(logits)[0]
        best = own.topk(min(question.num_tokens, own.shape[0])).indices.tolist()
        nats = torch.special.entr(own).sum().item()
        return NextTokens(
            candidates=tuple(
                NextToken(
                    piece=self._piece(token_id),
                    logit=logits[0, token_id].item(),
                    probability=own[token_id].item(),
                    sampled=sampled[token_id].item(),
                )
                for token_id in best
            ),
            num_left=int((sampled > 0).sum().item()),
            entropy_bits=nats / math.log(2),
            num_computed=len(question.ids) - num_reused,
            num_reused=num_reused,
            seconds=time.perf_counter() - began,
            temperature=params.temperature or 0.0,
            top_k=params.top_k or 0,
            top_p=1.0 if params.top_p is None else params.top_p,
            min_p=params.min_p or 0.0,
            repetition_penalty=params.repetition_penalty or 1.0,
        )


def _asked(question: AskNextTokens) -> SamplingParams:
    return SamplingParams(
        temperature=question.temperature,
        top_p=question.top_p,
        top_k=question.top_k,
        min_p=question.min_p,
        repetition_penalty=question.repetition_penalty,
    )


def _sampler(params: SamplingParams, ids: TokenIds, device: torch.device) -> Sampler:
    try:
        return Sampler(params, ids, device)
    except ValueError as error:  # of the processors, which say what they want
        raise UsageError(
            f"No token can be chosen with these settings: {error}.", "Choose others."
        ) from error
