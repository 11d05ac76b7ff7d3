"""One call of the model: new ids at the end of a cache, and the logits behind the last.

Owns which of the ways is taken: transformers' modules, a step in compiled code (`packed/`), or a
step that a GPU replays (`static_step.py`); and what goes wrong in any of them. Turns, reuse and
segments are not known here.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from chatcache.backends.local.model.capturing import takes_static_step
from chatcache.backends.local.model.failures import is_out_of_memory, without_gpu
from chatcache.backends.local.packed.known import no_step, step_limit
from chatcache.backends.local.run.graphs import Graphs, graphs_for
from chatcache.backends.local.run.static_step import MAX_ROWS, VERDICTS, StaticStep
from chatcache.backends.local.run.threads import Threads
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.errors import NotFiniteError, UnavailableError


class Forward:
    """Calls the model on new ids at the end of a cache; last logits only, batch of one.

    A hand loop instead of `generate()`, because that is silently wrong when the cache covers the
    whole prompt and has neither progress nor a stop between chunks.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        threads: Threads | None = None,
        graphs: Graphs | None = None,
    ):
        """`threads` chooses those that compute; without it they are torch's, as they are. `graphs`
        captures steps, where the model takes such; without it those of the device do."""
        self._model = model
        self._threads = threads
        self._device = device
        self._step: Callable[[LiveKV, Sequence[int], int], torch.Tensor] | None = None
        self._likeliest: tuple[torch.Tensor, int] | None = None
        self.static: StaticStep | None = None  # that a GPU replays
        if (graphs := graphs or graphs_for(device)) and takes_static_step(model, device):
            self.static = StaticStep(model, device, graphs)
        self._step_limit = step_limit(model) if self.static is None else no_step
        accepted = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self._options["logits_to_keep"] = 1
        self._has_positions = "position_ids" in accepted
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"

    @torch.inference_mode()
    def __call__(self, cache: Cache, token_ids: Sequence[int], start: int) -> torch.Tensor:
        """Append the ids at positions from `start`; returns the logits `[1, vocab]` of the last.

        Raises UnavailableError when the device is out of memory; the cache then holds an unknown
        number of the new tokens and must be truncated to `start`. Raises NotFiniteError when the
        logits are no numbers; nothing of the cache is of any use then.
        """
        if self._threads is not None:
            is_compiled = self._takes_step(cache, len(token_ids), start)
            self._threads.begin(len(token_ids), is_compiled=is_compiled)
        with memory_for(start + len(token_ids)):
            logits = self._computed(cache, token_ids, start)
            largest = self._largest(logits)
        if self._threads is not None:
            self._threads.end()
        # It tells for all: NaN wins over any number, and an overflow is infinite. Minus infinity is
        # fine where not all are: such a token is never chosen.
        if not math.isfinite(largest):
            if isinstance(cache, LiveKV):
                cache.scrub(start)
            raise _not_finite(self._model.dtype)
        return logits

    def likeliest(self, logits: torch.Tensor) -> int | None:
        """The id with the largest of the logits that were computed last, where it is known without
        waiting for the device once more."""
        known = self._likeliest
        return known[1] if known is not None and known[0] is logits else None

    def step(self) -> Callable[[LiveKV, Sequence[int], int], torch.Tensor]:
        """What computes a few tokens in compiled code; made at first use, because what it needs is
        imported and compiled then."""
        if self._step is None:
            from chatcache.backends.local.packed.decode import decode_step

            self._step = decode_step(self._model)
        return self._step

    def settle(self, kv: LiveKV, known: str | None = None) -> str | None:
        """Compare the steps that a GPU replays with the ordinary ones, before any turn, unless it
        is `known` how they compare; where they are not right, they are not taken. Returns what is
        known now, for the next process; None: nothing. Nothing is live afterwards."""
        static, verdict = self.static, next((each for each in VERDICTS if each == known), None)
        if static is None:
            return None
        if verdict is None:
            verdict = static.prove(kv, self._ordinary)
        else:
            static.trust(kv, verdict)
        # Where nothing can be captured, the ordinary steps are the quicker ones.
        if verdict == "wrong" or not static.has_graphs:
            self.static = None
        return verdict

    def look_ahead(self, kv: LiveKV) -> bool:
        """Between turns: have a GPU get ready for a short message behind what is live, by one
        capture; False: there was nothing to do."""
        return self.static is not None and self.static.get_ready(kv)

    def get_ready(self) -> None:
        """Make what the first step will need, in a thread of its own."""
        if self._step_limit(0):
            threading.Thread(target=self.step, name="get-ready").start()

    @torch.inference_mode()
    def output(self, cache: Cache, token_ids: Sequence[int], start: int, **options: Any) -> Any:
        """All that the model's modules tell with these `options` of theirs. It is no step of a
        turn, and says nothing of their pace. Raises what calling it raises."""
        if self._threads is not None:
            self._threads.begin(len(token_ids))
        with memory_for(start + len(token_ids)):
            output = self._through_modules(cache, token_ids, start, **options)
            if not math.isfinite(output.logits[:, -1].max().item()):
                raise _not_finite(self._model.dtype)
            return output

    def aside(self, cache: Cache, token_ids: Sequence[int], start: int) -> torch.Tensor:
        """The logits `[1, vocab]` of the last, for no turn."""
        logits: torch.Tensor = self.output(cache, token_ids, start).logits[:, -1]
        return logits

    def _computed(self, cache: Cache, token_ids: Sequence[int], start: int) -> torch.Tensor:
        if isinstance(cache, LiveKV):
            if self.static is not None and len(token_ids) <= MAX_ROWS:
                logits = self.static(cache, token_ids, start)
                if logits is not None:
                    return logits
            if self._takes_step(cache, len(token_ids), start):
                return self.step()(cache, token_ids, start)
        return self._ordinary(cache, token_ids, start)

    def _takes_step(self, cache: Cache, num_tokens: int, start: int) -> bool:
        """Whether so many tokens from there on go through compiled code."""
        return isinstance(cache, LiveKV) and num_tokens <= self._step_limit(start)

    def _largest(self, logits: torch.Tensor) -> float:
        """The largest of the logits; from a device it comes with its place, in one wait."""
        if self._device.type == "cpu":
            return float(logits.max().item())
        largest, index = outcome_of(logits).tolist()
        self._likeliest = logits, int(index)
        return float(largest)

    def _ordinary(self, cache: Cache, token_ids: Sequence[int], start: int) -> torch.Tensor:
        logits: torch.Tensor = self._through_modules(cache, token_ids, start).logits[:, -1]
        return logits

    def _through_modules(
        self, cache: Cache, token_ids: Sequence[int], start: int, **asked: Any
    ) -> Any:
        options = {**self._options, **asked}
        if self._has_positions:
            stop = start + len(token_ids)
            options["position_ids"] = torch.arange(start, stop, device=self._device)[None]
        ids = torch.tensor([list(token_ids)], device=self._device)
        return self._model(input_ids=ids, **{self._cache_name: cache}, **options)


def outcome_of(logits: torch.Tensor) -> torch.Tensor:
    """float32 `[2]`: the largest of the logits `[1, vocab]`, and where it is. NaN is larger than
    any number. In one tensor, for one way to the host: ids are far below 2 ** 24."""
    index = logits.argmax(dim=-1, keepdim=True)
    return torch.cat([logits.gather(1, index).float(), index.float()], dim=1)[0]


def _not_finite(dtype: torch.dtype) -> NotFiniteError:
    hints = {
        torch.float16: "Choose --dtype bfloat16, which has room for larger numbers.",
        torch.bfloat16: "Choose --dtype float32; if that does not help, the weights are damaged.",
    }
    return NotFiniteError(
        f"The model computed numbers that are not finite (NaN or infinite) in "
        f"{str(dtype).removeprefix('torch.')}: an answer would mean nothing.",
        hints.get(dtype, "Its weights are damaged: download it again, or choose another model."),
    )


@contextlib.contextmanager
def memory_for(num_tokens: int) -> Iterator[None]:
    """Where memory may run out. Raises UnavailableError then, with what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"There is not enough memory for a context of {num_tokens:,} tokens.",
            "Shorten the conversation, use a smaller model, or choose --dtype bfloat16."
            f"{without_gpu(error)}",
        ) from error
