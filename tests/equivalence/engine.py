"""One engine on ids: turns whose logits are kept, to be compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatcache.backends.local.model.cut_policy import cut_policy
from chatcache.backends.local.run.assemble import build_context
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.live_context import LivePath, Reuse
from chatcache.cache.book.rates import RateBook
from chatcache.cache.prefix import PrefixCache
from chatcache.cache.tensors.buckets import BucketLayer
from chatcache.cache.tensors.device_int8 import DeviceInt8KV
from chatcache.cache.tensors.device_kv import DeviceKV
from chatcache.cache.tensors.int8 import Int8KV
from chatcache.cache.tensors.link import Link
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.token_ids import TokenIds
from tests import machines
from tests.equivalence.families import is_captured
from tests.recorded_calls import RecordedCalls

FIRST = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
SECOND = [43, 38, 32, 79, 50, 28]
THIRD = [84, 19, 71, 69, 39]
OTHER = [93, 75, 10, 58, 20]
CHUNK_TOKENS = 8
TAIL_TOKENS = 2  # of a prompt stand for the generation prompt


def num_layers(model: Any) -> int:
    return int(model.config.num_hidden_layers)


def device_kv(
    num_layers: int, device: torch.device, link: Link, slab_budget: int, precision: str = "exact"
) -> DeviceKV:
    """With slabs that are small enough for a few tokens to need several."""
    kind = DeviceInt8KV if precision == "int8" else DeviceKV
    return kind(
        num_layers, torch.float32, device, link=link, slab_budget=slab_budget, slab_bytes=1 << 18
    )


@dataclass(frozen=True)
class Said:
    """A finished turn: the whole journal, the logits `[steps, vocab]`, and what was reused."""

    ids: list[int]
    answer: list[int]
    logits: torch.Tensor
    reuse: Reuse


class IdsEngine:
    """What the engine process does, on token ids. A model on the attention of a GPU takes its steps
    as a GPU would: captured, by a stand-in."""

    def __init__(
        self,
        model: Any,
        directory: Path,
        precision: str = "exact",
        link: Link | None = None,
        *,
        is_plain: bool = False,
        **budgets: Any,
    ):
        """With a `link` the model is on a device with memory of its own, or taken to be; without
        one it is on what the machine of the test has, unless it is to be plain."""
        cut = cut_policy(model.config)
        machine = machines.HOST if is_plain else machines.current()
        if link is None and machine.new_link is not None:
            link = machine.new_link()
        self.model = model
        self.graphs = RecordedCalls() if is_captured(model) else None
        has_buckets = self.graphs is not None or link is not None
        if link is not None and cut.kind == "any_token":
            budgets.setdefault("vram_budget", machines.VRAM_BUDGET)
            slab_budget = budgets.get("ram_budget", 1 << 24)
            self.live: LiveKV = device_kv(
                num_layers(model), model.device, link, slab_budget, precision
            )
        else:
            kind = Int8KV if precision == "int8" else LiveKV
            config = model.config if cut.needs_states else None
            layer = BucketLayer if has_buckets else None
            self.live = kind(num_layers(model), torch.float32, model.device, config, layer)
        self.prefixes = PrefixCache(
            directory,
            f"equivalence-{precision}",
            needs_states=cut.needs_states,
            **{"ram_budget": 1 << 30, "disk_budget": 1 << 30, **budgets},
        )
        self.prefixes.open({})
        path = LivePath(Forward(model, model.device, graphs=self.graphs), self.live)
        path.give_way = self.prefixes.vram.give_up
        path.forward(self.live, [0], 0)
        self.live.truncate(0)
        path.forward.settle(self.live)
        assert self.graphs is None or path.forward.static is not None
        self.rates = RateBook()
        self.context = build_context(
            cut, path, self.prefixes, self.rates, CHUNK_TOKENS, model.config
        )

    def turn(
        self,
        prompt: Sequence[int],
        num_answer: int,
        *,
        is_cold: bool = False,
        is_kept: bool = True,
        stop_after: int | None = None,
    ) -> Said:
        """Answer greedily with `num_answer` tokens, then close the turn as the engine does.

        With `stop_after` the prefill is stopped there, as a key press would; nothing is answered.
        """
        ids, reuse = TokenIds(prompt), Reuse()
        if is_cold:
            self.context.start_cold()
        else:
            reuse = self.context.reuse(ids, len(prompt) - 1)
            assert reuse.num_tokens == self.context.path.kv.num_tokens
        stops = [len(prompt) - TAIL_TOKENS]
        for step in self.context.prefill(ids, reuse.num_tokens, stops=stops):
            logits = step.logits
            if stop_after is not None and step.done >= stop_after:
                self.context.commit(TokenIds(prompt[: step.done]), [step.done])
                return Said(list(prompt[: step.done]), [], logits.cpu(), reuse)
        kept, answer = [logits], [int(logits.argmax())]
        while len(answer) < num_answer:
            logits = self.context.step(answer[-1], len(prompt) + len(answer) - 1)
            kept.append(logits)
            answer.append(int(logits.argmax()))
        self.context.step(answer[-1], len(prompt) + num_answer - 1)
        whole = [*prompt, *answer]
        if is_kept:
            self.context.commit(TokenIds(whole), [len(prompt), len(whole)])
        else:
            self.context.path.forget()
        return Said(whole, answer, torch.cat(kept).cpu(), reuse)

    def forget_live(self) -> None:
        self.context.path.forget()

    def close(self) -> None:
        self.prefixes.close()


Factory = Callable[..., IdsEngine]


def three_turns(
    engine: IdsEngine, num_answer: int, *, is_last_kept: bool = True
) -> tuple[Said, Said, Said]:
    """A conversation that is never stopped."""
    one = engine.turn(FIRST, num_answer)
    two = engine.turn(one.ids + SECOND, num_answer)
    return one, two, engine.turn(two.ids + THIRD, num_answer, is_kept=is_last_kept)


def assert_same_bits(said: Said, other: Said) -> None:
    assert said.ids == other.ids
    assert torch.equal(said.logits, other.logits)


def check_resuming(engine: Factory) -> None:
    """From RAM and from disk a conversation has the bits of the one that was never stopped."""
    opened = engine()
    _, two, three = three_turns(opened, 6, is_last_kept=False)
    again = engine().turn(two.ids + THIRD, 6, is_kept=False)
    assert again.reuse.disk_tokens == again.reuse.num_tokens == len(two.ids)
    assert_same_bits(again, three)
    opened.forget_live()
    again = opened.turn(two.ids + THIRD, 6, is_kept=False)
    assert (again.reuse.num_tokens, again.reuse.disk_tokens) == (len(two.ids), 0)
    assert_same_bits(again, three)


def check_switching(engine: Factory, straight: tuple[Said, Said, Said] | None = None) -> None:
    """Whoever goes to a fork and back is answered as if there were none, as in `straight`."""
    one, two, three = straight or three_turns(engine("straight"), 6, is_last_kept=False)
    forked = engine()
    forked.turn(FIRST, 6)
    forked.turn(one.ids + SECOND, 6)
    forked.turn(one.ids + OTHER, 9)
    again = forked.turn(two.ids + THIRD, 6)
    assert again.reuse.num_tokens == len(two.ids)
    assert_same_bits(again, three)
