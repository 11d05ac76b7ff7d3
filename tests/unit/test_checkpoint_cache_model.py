"""Random lives of a prefix cache whose model needs checkpoints, against a set of texts.

A restore ends where a checkpoint was once committed or nowhere, with the K, V and states that
belong there. Until eviction or damage can have touched it, the longest such place is found.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chatcache.cache.prefix import PrefixCache
from tests.kvfakes import BYTES_PER_TOKEN, ByteBlock, ByteSink, ids_of, true_state

words = st.text("ab", min_size=1, max_size=6)


class CheckpointLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="chatcache-test-"))
        self.taken: set[str] = set()
        self.is_sure = True

    @initialize(ram_tokens=st.sampled_from([8, 10_000]), disk=st.sampled_from([6_000, 1 << 30]))
    def open(self, ram_tokens: int, disk: int) -> None:
        self.budgets = {"ram_budget": ram_tokens * BYTES_PER_TOKEN, "disk_budget": disk}
        self.is_roomy = disk > 1 << 20
        self.cache = self._new_cache()

    def _new_cache(self) -> PrefixCache:
        cache = PrefixCache(self.directory, "ns", needs_states=True, **self.budgets)
        cache.open({})
        return cache

    @rule(history=st.lists(words, min_size=1, max_size=3), answer=words)
    def turn(self, history: list[str], answer: str) -> None:
        """Checkpoints are taken at the end of the prompt and of the answer."""
        text = "".join([*history, answer])
        ids, prompt = ids_of(text), len(text) - len(answer)
        start = self._restore(text, prompt - 1)
        ends = [end for end in (prompt, len(text)) if end > start]
        self.cache.commit(
            ids,
            ends,
            lambda begin, end: ByteBlock(ids, begin, end, with_states=True),
            start,
        )
        self.taken.update(text[:end] for end in ends)

    def _restore(self, text: str, limit: int) -> int:
        ids, sink = ids_of(text), ByteSink()
        known = [n for n in range(1, limit + 1) if text[:n] in self.taken]
        with self.cache.acquire(ids, limit) as lease:
            wanted = lease.num_tokens
            restored = self.cache.restore(lease, sink, 0)
            assert sink.is_true_to(ids)
            assert sink.came_as(restored.runs)
            states = self.cache.restore_states(lease, sink)
        if self.is_sure and self.is_roomy:
            assert wanted == (known[-1] if known else 0)
        is_whole = restored.problem is None and states.problem is None
        if not is_whole or not wanted:
            assert is_whole or not self.is_sure
            return 0
        assert wanted in known
        assert sink.num_tokens == wanted
        assert sink.state == true_state(ids[:wanted])
        return wanted

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = self._new_cache()

    @rule()
    def killed(self) -> None:
        self.cache.drain(10)
        self.cache = self._new_cache()

    @rule(number=st.integers(0, 99), at=st.floats(0, 1, exclude_max=True), harm=st.booleans())
    def harm(self, number: int, at: float, harm: bool) -> None:
        self.cache.drain(10)
        files = sorted(self.directory.glob("segments/ns/*.safetensors"))
        if not files:
            return
        path = files[number % len(files)]
        content = bytearray(path.read_bytes())
        if harm:
            path.unlink()
        else:
            content[int(at * len(content))] ^= 1
            path.write_bytes(content)
        self.is_sure = False

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.check() == []

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
        shutil.rmtree(self.directory)


TestCheckpointLife = CheckpointLife.TestCase
TestCheckpointLife.settings = settings(max_examples=30, stateful_step_count=20)
