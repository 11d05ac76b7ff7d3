"""Whether a model has room in memory: the verdict, its words, and what an engine does with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chatcache.backends.local.model import fit, memory_check, needs
from chatcache.backends.local.model.fit import Needs, WayOut
from chatcache.backends.local.model.loader import load_model
from chatcache.backends.local.model.memory_check import MemoryCheck
from chatcache.backends.local.model.outlook import ENGINE_BYTES, outlook
from chatcache.backends.local.model.remarks import remarks
from chatcache.errors import NoRoomError
from chatcache.machine import MemoryLimit
from tests.models import build_model_dir

GB = 10**9
CPU = torch.device("cpu")


def machine(total: float, available: float, swap: float = 0) -> MemoryLimit:
    return MemoryLimit(
        "this machine", int(total * GB), int(available * GB), swap_bytes=int(swap * GB)
    )


def shell(available: float) -> MemoryLimit:
    return MemoryLimit(
        "the shell's limit (ulimit -v)", int(available * GB), int(available * GB), counts_files=True
    )


def gb(held: float, mapped: float = 0, per_token: int = 0, tokens: int = 0) -> Needs:
    return Needs(int(held * GB), int(mapped * GB), per_token, tokens)


CASES: dict[str, tuple[Needs, list[MemoryLimit], fit.Verdict]] = {
    "plenty": (gb(4), [machine(16, 12)], "fits"),
    "held and not there": (gb(14.2), [machine(16, 9.1)], "too large"),
    "a container is smaller": (gb(4), [machine(64, 60), machine(4, 3)], "too large"),
    "a file that is mapped may be dropped": (gb(0.1, 10), [machine(16, 9)], "tight"),
    "a file larger than all memory": (gb(0.1, 20), [machine(16, 12)], "too large"),
    "a file and no room for what is made of it": (gb(9, 10), [machine(16, 8)], "too large"),
    "the shell counts files too": (gb(0.1, 10), [machine(16, 12), shell(5)], "too large"),
    "the context counts": (gb(8, per_token=1_000_000, tokens=9999), [machine(16, 9)], "too large"),
    "a short context counts less": (
        gb(8, per_token=1_000_000, tokens=99),
        [machine(16, 9)],
        "fits",
    ),
    "other programs can go to the swap": (gb(10), [machine(16, 9, swap=4)], "tight"),
    "the model itself cannot": (gb(17), [machine(16, 9, swap=40)], "too large"),
    "nothing is known": (gb(4000), [], "fits"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict(name: str) -> None:
    needed, limits, verdict = CASES[name]
    found = fit.fit(needed, limits)
    assert found.verdict == verdict
    if verdict == "too large":
        assert fit.problem("m", found).endswith(".")


sizes = st.integers(0, 1 << 42)
a_limit = st.builds(
    lambda total, used, files, swap: MemoryLimit("it", total, max(0, total - used), files, swap),
    st.integers(1, 1 << 42),
    sizes,
    st.booleans(),
    sizes,
)


@given(
    st.builds(Needs, sizes, sizes, st.integers(0, 1 << 24), st.integers(0, 1 << 21)),
    st.lists(a_limit, max_size=4),
    sizes,
)
def test_more_memory_is_never_worse(needed: Needs, limits: list[MemoryLimit], more: int) -> None:
    order = ("too large", "tight", "fits")
    found = fit.fit(needed, limits)
    roomier = [
        MemoryLimit(
            each.where, each.total + more, each.available + more, each.counts_files, each.swap_bytes
        )
        for each in limits
    ]
    assert order.index(fit.fit(needed, roomier).verdict) >= order.index(found.verdict)
    assert 0 <= fit.budget(found, 1 << 31) <= 1 << 31
    assert 0 <= found.context_tokens <= needed.max_tokens
    if needed.total <= min((each.available for each in limits), default=1 << 62):
        assert found.verdict == "fits"
    fit.remark("m", found)
    if found.verdict == "too large":
        fit.problem("m", found)


def test_the_sentence_has_both_numbers_and_the_ways_that_fit() -> None:
    limits = [machine(16, 9.1)]
    found = fit.fit(gb(14.2), limits)
    ways = [
        WayOut("--dtype bfloat16", gb(7.1)),
        WayOut("--quantize 8bit", gb(12)),
        WayOut("--quantize 4bit", gb(4)),
    ]
    assert fit.problem("ORG/big", found) == (
        "ORG/big needs 14.2 GB of memory to be loaded, and this machine has 9.1 GB free of 16.0 GB."
    )
    assert fit.advice(found, ways, limits, "") == (
        "--dtype bfloat16 needs about 7.1 GB and --quantize 4bit needs about 4.0 GB. "
        "--no-fit-check loads it all the same."
    )
    assert fit.advice(found, ways[1:2], limits, "An engine holds 5 GB.") == (
        "Choose a smaller model or file (in 4 bits up to about 15 B parameters have room), or free "
        "memory. "
        "An engine holds 5 GB. --no-fit-check loads it all the same."
    )


@pytest.mark.parametrize(
    ("needed", "limit", "words"),
    [
        (gb(1), machine(16, 9), ""),
        (gb(0.1, 10), machine(16, 9), "read from the disk again"),
        (gb(10), machine(16, 9, swap=4), "swap"),
        (gb(8, per_token=200_000, tokens=32768), machine(16, 9), "about 5,000 of 32,768 tokens"),
        (gb(8, per_token=200_000, tokens=4096), machine(16, 9), ""),
    ],
)
def test_what_just_fits_is_said(needed: Needs, limit: MemoryLimit, words: str) -> None:
    said = fit.remark("m", fit.fit(needed, [limit]))
    assert (words in said) if words else said == ""


def test_segments_get_what_is_left() -> None:
    found = fit.fit(gb(8, per_token=10_000, tokens=4096), [machine(16, 9)])
    assert fit.budget(found, 2 * GB) == GB - 4096 * 10_000
    assert fit.budget(found, GB // 2) == GB // 2
    crowded = fit.fit(gb(8.99), [machine(16, 9)])
    assert fit.budget(crowded, 2 * GB) == fit.MIN_BUDGET_BYTES


# real files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved in bfloat16."""
    path = build_model_dir(tmp_path_factory.mktemp("model"))
    file = path / "model.safetensors"
    save_file({name: each.bfloat16() for name, each in load_file(file).items()}, file)
    config = json.loads((path / "config.json").read_text()) | {"dtype": "bfloat16"}
    (path / "config.json").write_text(json.dumps(config))
    return path


def weight_bytes(path: Path) -> int:
    return sum(
        end - begin
        for tensor in needs.read_header(path / "model.safetensors").values()
        for begin, end in [tensor["data_offsets"]]
    )


def test_another_dtype_is_held_and_the_same_one_stays_mapped(model: Path) -> None:
    stored = weight_bytes(model)
    as_float = needs.directory_needs(model, "float32")
    assert (as_float.held, as_float.mapped) == (2 * stored, 0)
    packed = needs.directory_needs(model, "bfloat16")  # a family that is packed on a CPU
    assert (packed.held, packed.mapped) == (stored, 0)
    on_gpu = needs.directory_needs(model, "bfloat16", "cuda")
    assert (on_gpu.held, on_gpu.mapped) == (0, stored)
    assert needs.device_needs(model, "bfloat16").held == stored
    assert needs.quantized_needs(model, "4bit").weights == int(stored / 2 * 0.5625)


def check_with(*limits: MemoryLimit, is_refusing: bool = True) -> MemoryCheck:
    return MemoryCheck(is_refusing, lambda: "Others hold 1 GB.", lambda: list(limits))


def exactly(num_bytes: int, total: int | None = None) -> MemoryLimit:
    return MemoryLimit("this machine", num_bytes if total is None else total, num_bytes)


def test_what_has_no_room_is_refused_before_its_weights_are_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatcache.backends.local.model.origin.load_weights", None)
    with pytest.raises(NoRoomError) as caught:
        load_model(str(model), dtype="float32", memory=check_with(exactly(weight_bytes(model))))
    assert "needs" in caught.value.message
    assert "--no-fit-check" in caught.value.hint
    assert "Others hold 1 GB." in caught.value.hint
    assert caught.value.exit_code == 4


def test_the_check_can_be_overruled(model: Path) -> None:
    loaded = load_model(str(model), memory=check_with(exactly(1000), is_refusing=False))
    assert loaded.fit.verdict == "too large"
    assert list(remarks(loaded, is_dtype_chosen=False)) == []


def test_a_dtype_that_could_never_fit_is_not_taken(model: Path) -> None:
    room = needs.directory_needs(model, "bfloat16").total
    check = check_with(exactly(room))
    stored = torch.bfloat16
    assert check.dtype_with_room(model, torch.float32, stored, CPU) is stored
    # The memory is only full now: what is kept of the other dtype stays of use.
    check = check_with(exactly(room, total=64 * GB))
    assert check.dtype_with_room(model, torch.float32, stored, CPU) is torch.float32
    check = check_with(exactly(1000))
    assert check.dtype_with_room(model, torch.float32, stored, CPU) is torch.float32


def test_the_memory_of_a_gpu_counts(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = MemoryLimit("the GPU (a small one)", 1000, 1000)
    monkeypatch.setattr(memory_check, "_gpu_limits", lambda device: [gpu])
    with pytest.raises(NoRoomError) as caught:
        check_with(machine(16, 16)).look("m", model, torch.bfloat16, torch.device("cuda"))
    assert "the GPU (a small one) has" in caught.value.message
    assert "--device cpu" in caught.value.hint


def test_a_shorter_context_can_be_chosen(model: Path) -> None:
    assert load_model(str(model), max_context=512).max_context_tokens == 512
    assert load_model(str(model), max_context=1 << 30).max_context_tokens == 4096


# told without an engine


@pytest.mark.parametrize(
    ("available", "total", "status", "verdict"),
    [(8, 16, "ok", "fits"), (0.2, 16, "note", "too large"), (0.2, 0.2, "problem", "too large")],
)
def test_the_outlook_of_a_model(
    available: float, total: float, status: str, verdict: str, model: Path
) -> None:
    told = outlook("m", model, limits=[machine(total, available)])
    assert told is not None
    assert (told.status, told.verdict) == (status, verdict)
    assert told.num_bytes > ENGINE_BYTES
    assert bool(told.advice) is (status != "ok")
    assert outlook("m", model / "nothing") is None


def test_experts_are_not_promised_room_to_be_quantised(tmp_path: Path) -> None:
    """They are put together before, and take twice the bytes of their file for a moment."""
    path = build_model_dir(tmp_path, "qwen3_moe", num_experts=4, moe_intermediate_size=32)
    made, unmade = (
        needs.quantized_needs(path, "4bit", is_made=is_made) for is_made in (True, False)
    )
    assert unmade.held == 2 * needs.count_weights(path) > made.held == 0
