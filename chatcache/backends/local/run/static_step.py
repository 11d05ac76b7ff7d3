"""A few tokens through the model in a form that a graph can hold.

Everything that changes from one step to the next lies in tensors: the ids, the position, how many
of them count. The attention reads a whole bucket of K and V behind a mask that is made of the
position. So the same operations on the same memory are right for every position of a bucket, and a
captured graph repeats them with one launch.

A step is computed directly until a graph pays, and the bits are the same: which of the two it was
depends on how long the process lives, and a resumed chat must not show that. Rows (1, or a short
prompt padded to 16, 64 or 256) and bucket follow from where it starts and stops, and from nothing
else.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from chatcache.backends.local.model.capturing import (
    BY_LAYER,
    Sight,
    StaticForm,
    layer_kinds,
    sight_of,
)
from chatcache.backends.local.run.graphs import Graphs
from chatcache.cache.tensors.buckets import bucket_for
from chatcache.cache.tensors.layers import Buffers
from chatcache.cache.tensors.live_kv import LiveKV

log = logging.getLogger(__name__)

ROWS = (1, 16, 64, 256)
MAX_ROWS = ROWS[-1]
# So many times a step is computed directly: the first tokens do not wait for a graph, and what is
# asked once does not pay for one.
_DIRECT_TOKENS, _DIRECT_PROMPTS = 4, 1
# Logits whose differences are, on the whole, so much of their deviation are the same. (Measured
# with random weights in bfloat16: 0.01, and 0.08 where experts changed places; others: 1.4.)
_CLOSE = {torch.float32: 5e-3}
_CLOSE_IN_HALF = 0.25
# Scores of one head are rows times bucket. Where they are more, writing and reading them takes
# longer than the ordinary pass, which makes none (by reckoning, for 8 billion weights on an H200:
# 47 ms for 256 rows over 32,768, and 70 ms for any ordinary pass).
_MAX_SCORES = 256 * 32_768
_MAX_STEPS = 4 * len(ROWS)  # a graph of a large model takes megabytes of the device
_MIN_SAVED = 2  # what a window shows is copied together where the bucket is so many times as long

# What is known of these steps: they say something else than the ordinary ones, or graphs of them
# have the bits of their operations, or others, near enough.
StepVerdict = Literal["wrong", "same bits", "own bits"]
VERDICTS: tuple[StepVerdict, ...] = get_args(StepVerdict)


class _Written:
    """Where the tokens of a step go: set before the layers are asked."""

    start: torch.Tensor  # of no dimensions
    positions: torch.Tensor  # [rows]
    is_padding: torch.Tensor | None  # [rows, 1]; None: all rows count


class _View:
    """What layers of one kind read of a bucket: all of it, or as much in a row as they see at most,
    where that is much less."""

    def __init__(self, sight: Sight, rows: int, bucket: int, device: torch.device):
        reach = sight.reach(rows)
        self._is_part = reach is not None and _MIN_SAVED * reach <= bucket
        num_keys = reach if reach is not None and self._is_part else bucket
        self._sight, self._last = sight, bucket - num_keys
        self._keys = torch.arange(num_keys, device=device)
        self.places: torch.Tensor | None = None  # [num_keys], in the bucket; None: it is all of it

    def follow(self, written: _Written) -> torch.Tensor:
        """Where to look in this step; returns the mask."""
        keys = self._keys
        if self._is_part:
            first = self._sight.first(written.start).clamp(0, self._last)
            keys = self.places = self._keys + first
        return self._sight.seen(keys, written.positions)[None, None]


class _BucketSlot(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """K and V of one layer to transformers: writes at positions that a tensor tells, and gives the
    bucket, or what the layer may see of it."""

    is_compileable = False

    def __init__(self, home: Buffers, bucket: int, written: _Written, view: _View):
        # What holds a step must not keep buffers that the path has left.
        self._home = weakref.ref(home)
        self._bucket, self._written, self._view = bucket, written, view
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The buffers are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._put("key", key_states), self._put("value", value_states)

    def _put(self, kind: str, states: torch.Tensor) -> torch.Tensor:
        home, written = self._home(), self._written
        if home is None:
            raise RuntimeError("the buffers of this step are gone")
        whole = home.tensors[kind]
        if written.is_padding is not None:  # it stays finite, whatever the model makes of it
            states = states.masked_fill(written.is_padding, 0.0)
        whole.index_copy_(2, written.positions, states)
        if (places := self._view.places) is not None:
            return whole.index_select(2, places)
        return whole[:, :, : self._bucket]

    def get_seq_length(self) -> Any:
        return self._written.start  # a tensor, as transformers' own static layers tell it

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._bucket, 0

    def get_max_length(self) -> int:
        return self._bucket


@dataclass(eq=False, slots=True)
class _Step:
    """One number of rows in one bucket, on buffers that lie somewhere."""

    rows: int
    homes: list[weakref.ref[Buffers]]
    compute: Callable[[], None]
    num_direct: int = 0
    replay: Callable[[], None] | None = None
    is_fixed: bool = False  # it stays direct: there is no memory for a graph, or no use

    def is_on(self, homes: Sequence[Buffers]) -> bool:
        return all(mine() is home for mine, home in zip(self.homes, homes, strict=True))


class StaticStep:
    """Appends up to MAX_ROWS tokens to a live KV. Not thread-safe: it belongs to the thread that
    computes, under inference mode."""

    def __init__(self, model: Any, device: torch.device, graphs: Graphs):
        self._model, self._device = model, device
        self._config = model.config.get_text_config()
        self._kinds = layer_kinds(self._config)
        self._is_by_layer = self._config.model_type in BY_LAYER
        self._form = StaticForm(model, device)
        self._graphs: Graphs | None = graphs
        self._send = graphs.send
        self._numbers = torch.zeros(MAX_ROWS + 2, dtype=torch.long, device=device)
        self._offsets = torch.arange(MAX_ROWS, device=device)
        vocab = int(model.get_output_embeddings().out_features)
        self._logits = torch.zeros((1, vocab), dtype=model.dtype, device=device)
        self._steps: dict[tuple[int, int], _Step] = {}
        self._live: weakref.ref[LiveKV] | None = None
        self._has_own_bits = False  # a graph adds up in another order

    def __call__(self, kv: LiveKV, token_ids: Sequence[int], start: int) -> torch.Tensor | None:
        """Append the ids at positions from `start`; returns the logits `[1, vocab]` of the last,
        which the next step leaves alone. None, and nothing is done: this is not for that KV."""
        rows = rows_for(len(token_ids))
        step = self._step(kv, rows, start)
        if step is None:
            return None
        self._fill(rows, token_ids, start)
        self._run(step)
        for layer in kv.growing:
            layer.set_length(start + len(token_ids))
        return self._logits.clone()

    @property
    def has_graphs(self) -> bool:
        """Whether steps are still captured: none was refused."""
        return self._graphs is not None

    @property
    def num_captured(self) -> int:
        """How many steps are replayed by now."""
        return sum(step.replay is not None for step in self._steps.values())

    @torch.inference_mode()
    def get_ready(self, kv: LiveKV) -> bool:
        """Capture one of the steps that the next turn behind the live tokens may want, if there is
        one; nothing of it counts."""
        try:
            for rows in reversed(ROWS):  # the longest first: it may need longer buffers
                step = None if self._graphs is None else self._step(kv, rows, kv.num_tokens)
                if step is not None and step.replay is None and not step.is_fixed:
                    self._fill(rows, [], kv.num_tokens)
                    self._capture(step)
                    return True
        except RuntimeError as error:  # there is no memory for it
            log.info("nothing is captured ahead: %s", error)
        return False

    def trust(self, kv: LiveKV, verdict: StepVerdict) -> None:
        """Take it from an earlier process. From now on this KV is the only one worth graphs."""
        self._live = weakref.ref(kv)
        self._has_own_bits = verdict == "own bits"

    @torch.inference_mode()
    def prove(
        self, kv: LiveKV, ordinary: Callable[[LiveKV, Sequence[int], int], Any]
    ) -> StepVerdict | None:
        """Whether these steps say what the `ordinary` ones say, on a prompt and one token, captured
        and not; None: there was no memory for a graph. Nothing is live afterwards. From now on this
        KV is the only one worth graphs."""
        self._live = weakref.ref(kv)
        ids = list(range(MAX_ROWS // 16))
        expected = [ordinary(kv, ids, 0), ordinary(kv, [1], len(ids))]
        kv.truncate(0)
        found = [self(kv, ids, 0), self(kv, [1], len(ids))]
        is_right = all(
            ours is not None and _is_close(ours, theirs)
            for ours, theirs in zip(found, expected, strict=True)
        )
        if not is_right:
            kv.truncate(0)
            log.warning("steps on buckets say something else than the model: it stays eager")
            return "wrong"
        kv.truncate(len(ids))
        self._fill(1, [1], len(ids))
        step = self._steps[1, bucket_for(len(ids) + 1)]
        self._capture(step)
        kv.truncate(0)
        for tried in self._steps.values():  # the first token of a turn waits for no capture
            tried.num_direct = 0
        if step.replay is None:
            return None
        return "own bits" if self._has_own_bits else "same bits"

    # one step

    def _step(self, kv: LiveKV, rows: int, start: int) -> _Step | None:
        bucket = bucket_for(start + rows)
        homes = kv.claim_buckets(start, start + rows) if rows * bucket <= _MAX_SCORES else None
        if homes is None:
            return None
        if not self._is_live(kv):  # a path beside the live one is not worth a graph
            return _Step(rows, [], self._call(homes, rows, bucket), is_fixed=True)
        step = self._steps.pop((rows, bucket), None)
        if step is None or not step.is_on(homes):
            # Buffers were left: nothing that was captured on others is of use.
            self._steps = {key: known for key, known in self._steps.items() if known.is_on(homes)}
            step = _Step(rows, list(map(weakref.ref, homes)), self._call(homes, rows, bucket))
        self._steps[rows, bucket] = step
        if len(self._steps) > _MAX_STEPS:
            del self._steps[next(iter(self._steps))]  # the least recently used one
        return step

    def _is_live(self, kv: LiveKV) -> bool:
        live = None if self._live is None else self._live()
        return live is None or live is kv

    def _fill(self, rows: int, token_ids: Sequence[int], start: int) -> None:
        """The memory that all steps read: the ids, and behind them where they begin and how many
        they are."""
        padding = [0] * (rows - len(token_ids))
        self._send([start, len(token_ids), *token_ids, *padding], self._numbers)

    def _run(self, step: _Step) -> None:
        if step.replay is not None:
            step.replay()
        elif self._is_due(step):
            self._capture(step)
        else:
            step.num_direct += 1
            step.compute()

    def _is_due(self, step: _Step) -> bool:
        enough = _DIRECT_TOKENS if step.rows == 1 else _DIRECT_PROMPTS
        if self._graphs is None or step.is_fixed:
            return False
        return self._has_own_bits or step.num_direct >= enough

    def _capture(self, step: _Step) -> None:
        """Compute a step and capture it; where that fails, or says something else, it stays direct,
        and so do all others."""
        if self._graphs is None:
            step.compute()
            return
        try:
            replay = self._graphs.capture(step.compute)
            direct = self._logits.clone()
            replay()
            is_close = _is_close(self._logits, direct)
        except torch.OutOfMemoryError:
            step.is_fixed = True
            step.compute()
            return
        except RuntimeError as error:
            self._stay_eager(f"they cannot be captured: {str(error).partition(chr(10))[0]}")
            step.compute()
            return
        if not is_close:
            self._stay_eager("a graph says something else than the steps in it")
            step.compute()
            return
        step.replay = replay
        if not (self._has_own_bits or torch.equal(self._logits, direct)):
            log.info("graphs round differently here: no step is computed without one")
            self._has_own_bits = True

    def _stay_eager(self, why: str) -> None:
        log.warning("steps are computed without graphs: %s", why)
        self._graphs = None
        for step in self._steps.values():
            step.replay = None

    def _call(self, homes: list[Buffers], rows: int, bucket: int) -> Callable[[], None]:
        written = _Written()
        views = {
            kind: _View(sight_of(kind, self._config), rows, bucket, self._device)
            for kind in set(self._kinds)
        }
        slots = [
            _BucketSlot(home, bucket, written, views[kind])
            for home, kind in zip(homes, self._kinds, strict=True)
        ]
        cache = Cache(layers=[*slots])

        def compute() -> None:
            start, count = self._numbers[0], self._numbers[1]
            offsets = self._offsets[:rows]
            written.start, written.positions = start, offsets + start
            written.is_padding = (offsets >= count)[:, None] if rows > 1 else None
            masks = {kind: view.follow(written) for kind, view in views.items()}
            # Padding is where the last token is: there may be no such positions as its own.
            at = torch.minimum(written.positions, (start + count - 1).clamp(min=0))
            with self._form.entered():
                output = self._model(
                    input_ids=self._numbers[2 : 2 + rows][None],
                    position_ids=at[None],
                    attention_mask=masks if self._is_by_layer else masks[self._kinds[0]],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=(count - 1).clamp(min=0).view(1),
                )
            self._logits.copy_(output.logits[:, -1])

        return compute


def rows_for(num_tokens: int) -> int:
    """How many rows a step for so many tokens has, at most MAX_ROWS."""
    return next(rows for rows in ROWS if rows >= num_tokens)


def _is_close(logits: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether two runs of a model say the same, up to rounding. In half precision experts may be
    chosen differently where two are nearly as good."""
    wide = others.float()
    difference = (logits.float() - wide).square().mean().sqrt()
    return bool(difference <= _CLOSE.get(others.dtype, _CLOSE_IN_HALF) * wide.std())
