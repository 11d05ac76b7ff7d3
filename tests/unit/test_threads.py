"""The threads of an engine on a CPU: real ones, on a machine that is said to be crowded or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chatcache.backends.local.packed.known import takes_step
from chatcache.backends.local.run.forward import Forward
from chatcache.backends.local.run.threads import Sleep, Threads, use
from chatcache.cache.book.rates import RateBook
from chatcache.cache.tensors.live_kv import LiveKV
from chatcache.machine import is_crowded


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def num_sleepers() -> int:
    return sum(thread.name == "sleepers" for thread in threading.enumerate())


def product() -> torch.Tensor:
    return torch.ones((300, 300)) @ torch.ones((300, 300))


def test_a_prompt_gets_all_threads_and_a_step_what_was_chosen() -> None:
    threads = Threads(2, is_crowded=lambda count: False)
    rates = RateBook()
    rates.step_seconds = {2: 1.0, 1: 0.01}
    threads.settle(rates, lambda: pytest.fail("it is known"))
    counts = []
    for num_tokens in (64, 1, 1, 64):
        threads.begin(num_tokens)
        counts.append(torch.get_num_threads())
        threads.end()
    assert counts == [2, 1, 1, 2]


@pytest.mark.parametrize("is_busy", [False, True])
def test_steps_are_measured_once_and_kept_only_from_a_quiet_machine(
    is_busy: bool, tmp_path: Path
) -> None:
    book = tmp_path / "rates.json"
    rates = RateBook(book)
    crowd = is_busy
    threads = Threads(2, is_crowded=lambda count: crowd)
    counts: set[int] = set()

    def step() -> None:
        threads.begin(1)
        counts.add(torch.get_num_threads())
        threads.end()

    threads.settle(rates, step)
    assert counts == {2, 1}
    rates.save()
    kept = RateBook(book).step_seconds
    assert set(kept) == (set() if is_busy else {1, 2})
    crowd = False
    assert not threads.look(0.0)
    threads.rest()


@pytest.mark.parametrize("damage", ["[]", "7", '{"2": "x"}', '{"2": -1}', '{"a": 1}', "[[1]]"])
def test_damaged_rates_of_steps_are_measured_again(damage: str, tmp_path: Path) -> None:
    book = tmp_path / "rates.json"
    book.write_text(
        '{"prefill_tokens_per_second": 5, "restore_bytes_per_second": null, "is_measured": true,'
        f' "step_seconds": {damage}}}'
    )
    rates = RateBook(book)
    assert rates.step_seconds == {}
    assert rates.prefill_tokens_per_second == pytest.approx(5)


def test_where_others_want_the_cores_threads_sleep_until_they_do_not() -> None:
    crowd = True
    use(2)
    threads = Threads(2, is_crowded=lambda count: crowd)
    expected = product()
    for is_asleep in (True, True, False, False):
        crowd = is_asleep
        assert threads.look(0.0) == is_asleep
        threads.begin(64)
        assert num_sleepers() == is_asleep
        assert torch.equal(product(), expected)


def test_where_kernels_share_the_cores_threads_sleep_on_a_quiet_machine_too() -> None:
    use(2)
    threads = Threads(2, is_crowded=lambda count: False, is_shared=True)
    expected = product()
    for num_tokens in (64, 1):
        threads.begin(num_tokens)
        assert num_sleepers() == 1
        assert torch.equal(product(), expected)
    threads.rest()
    assert num_sleepers() == 0


def test_threads_sleep_for_compiled_steps_and_wake_for_the_prompts_of_the_modules() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes)).eval()
    assert takes_step(model)
    device = torch.device("cpu")
    kv = LiveKV(1, torch.float32, device)
    use(2)
    threads = Threads(2, is_crowded=lambda count: False, is_fixed=True)
    forward = Forward(model, device, threads)
    sleepers = []
    for ids in ([1, 2, 3], [4], [5], [6, 7]):
        forward(kv, ids, kv.num_tokens)
        sleepers.append(num_sleepers())
    assert sleepers == [0, 1, 1, 0]
    forward(kv, [8], kv.num_tokens)
    forward.output(kv, [9], kv.num_tokens)  # through the modules, though it is one token
    assert num_sleepers() == 0


def test_a_moment_is_no_crowd() -> None:
    looks = iter([True, True, True, True, False])
    assert not Threads(2, is_crowded=lambda count: next(looks)).look(0.0)


def test_sleep_leaves_no_threads_and_the_count_as_it_was() -> None:
    use(2)
    sleep = Sleep()
    for _ in range(3):
        sleep.begin(2)
        sleep.begin(2)
        assert num_sleepers() == 1
        sleep.end()
        sleep.end()
        assert num_sleepers() == 0
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("running", "num_threads", "num_cpus", "crowded"),
    [
        (1, 2, 2, False),  # we alone
        (5, 2, 2, True),
        (2, 2, 2, True),  # one other, and one of ours waits for it
        (5, 8, 16, False),
        (12, 8, 16, True),
        (3, 1, 4, False),
    ],
)
def test_a_crowd_is_more_threads_than_cpus(
    running: int, num_threads: int, num_cpus: int, crowded: bool, tmp_path: Path
) -> None:
    (tmp_path / "loadavg").write_text(f"0.5 0.4 0.3 {running}/812 4242\n")
    own = tmp_path / "self" / "task"
    for number, state in enumerate("RSS"):
        (own / str(number)).mkdir(parents=True)
        (own / str(number) / "stat").write_text(f"{number} (a (b) R) {state} 1 2 3")
    assert is_crowded(num_threads, tmp_path, num_cpus) == crowded


@pytest.mark.parametrize("words", ["", "0.1 0.2", "a b c d e", "1 2 3 -1/x 5", "1 2 3 /4 5"])
def test_what_tells_nothing_is_no_crowd(words: str, tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text(words)
    assert not is_crowded(4, tmp_path, 2)
    assert not is_crowded(4, tmp_path / "no", 2)
