"""Kernels of packed weights on a GPU, without one; and which of them are trusted."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatcache.backends.local import packed
from chatcache.backends.local.packed import device_computing, device_ready, kernel_store, modules
from chatcache.backends.local.packed.device_layout import LAYOUTS, split
from chatcache.backends.local.packed.kernel_store import KernelStore
from chatcache.backends.local.packed.modules import BlockEmbedding, BlockLinear, compute_plainly
from chatcache.doctor import machine
from tests import split_blocks
from tests.equivalence.families import CAPTURED, family_model
from tests.unit.test_packed_kernels import random_blocks, reference
from tests.unit.test_packed_on_device import with_blocks


def _in_own_process(*words: str, **variables: str) -> str:
    if importlib.util.find_spec("triton") is None:  # not imported: it has a lot to say at the end
        pytest.skip("there is no triton for this machine")
    done = subprocess.run(
        [sys.executable, "-m", "tests.card_kernels", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_give_the_weights_and_the_products_of_the_reference() -> None:
    """All kinds, in Triton's interpreter: weights bit for bit, products up to rounding."""
    _in_own_process("run", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_kernels_compile_for_a_card(tmp_path: Path) -> None:
    """For one kind, through what a launch does: wide loads, nothing spilled, one order of sums."""
    said = _in_own_process("compile", "90", "Q5_K", TRITON_CACHE_DIR=str(tmp_path))
    told = {made["kernel"]: made for made in map(json.loads, said.splitlines())}
    assert set(told) == {"multiply 1", "multiply 16", "multiply 5", "unpack"}
    for made in told.values():
        assert (made["stack"], made["local"], made["atomics"]) == (0, 0, 0)
    assert told["multiply 1"]["loads"][".v4.b32"] >= 8
    assert told["multiply 1"]["registers"] <= 128


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_fields_apart_are_the_same_bytes_in_another_order(name: str) -> None:
    matrix = random_blocks(name, 7, 768)
    apart = split(matrix)
    assert apart.num_bytes == matrix.num_bytes
    assert torch.equal(split_blocks.joined(apart).data, matrix.data)
    ids = torch.tensor([6, 0, 0, 3])
    assert torch.equal(split_blocks.joined(apart.rows(ids)).data, matrix.data[ids])
    assert torch.equal(split_blocks.joined(apart.part(2, 5)).data, matrix.data[2:5])
    with pytest.raises(IndexError):
        apart.rows(torch.tensor([7]))


def test_a_large_matrix_is_put_in_order_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatcache.backends.local.packed import device_layout

    monkeypatch.setattr(device_layout, "_CHUNK_WEIGHTS", 1500)
    matrix = random_blocks("Q6_K", 7, 768)
    assert torch.equal(split_blocks.joined(split(matrix)).data, matrix.data)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Products of split matrices without a GPU, in the place of its kernels."""
    name = "device_products"
    made = SimpleNamespace(**vars(split_blocks.PRODUCTS))
    monkeypatch.setitem(sys.modules, f"{packed.__name__}.{name}", made)
    monkeypatch.setattr(packed, name, made, raising=False)
    return made


def _packed_model(form: str, **options: Any) -> Any:
    model = family_model(CAPTURED + "qwen3", **options)
    with_blocks(model, form)
    compute_plainly(model)  # as on a GPU
    return model


IDS = torch.tensor([[3, 14, 15, 92, 65]])


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0"])
def test_a_model_computes_the_same_with_its_fields_apart(
    form: str, products: SimpleNamespace
) -> None:
    model = _packed_model(form, tie_word_embeddings=False)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        assert device_ready.get_ready(model)
        assert torch.equal(model(input_ids=IDS).logits, expected)
        longer = torch.arange(40)[None]
        assert torch.isfinite(model(input_ids=longer).logits).all()
    blocks = [part for part in model.modules() if isinstance(part, modules.BlockModule)]
    assert all(part.split is not None for part in blocks)
    assert all(part.get_buffer("blocks").numel() == 0 for part in blocks)
    assert device_ready.remarks(model) == []


def test_weights_of_an_output_layer_that_are_the_embedding_s_are_there_once(
    products: SimpleNamespace,
) -> None:
    model = _packed_model("Q8_0", tie_word_embeddings=True)
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    output.blocks = output.blocks.clone()  # as moving a model to a device does
    assert device_ready.get_ready(model)
    assert isinstance(output, BlockLinear)
    assert isinstance(embedding, BlockEmbedding)
    assert output.split is embedding.split


def test_a_kernel_that_gives_something_else_is_not_trusted(products: SimpleNamespace) -> None:
    model = _packed_model("Q4_0")
    before = copy.deepcopy(model)
    products.multiplied = lambda rows, apart: split_blocks.multiplied(rows, apart) * 1.001
    assert not device_ready.get_ready(model)
    (remark,) = device_ready.remarks(model)
    assert "the kernel for Q4_0 gives other products here" in remark
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, before(input_ids=IDS).logits)


def test_one_weight_that_is_another_is_enough(products: SimpleNamespace) -> None:
    def unpacked(apart: Any, dtype: torch.dtype) -> torch.Tensor:
        weights = split_blocks.unpacked(apart, dtype)
        weights[3, 5] += 1e-3
        return weights

    products.unpacked = unpacked
    why = device_ready.why_not(random_blocks("Q4_K", 16, 512), torch.float32)
    assert "other weights" in why


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Failed to find C compiler.\nSet CC."), "Failed to find C compiler."),
        (ImportError("No module named 'triton'", name="triton"), "triton is not installed"),
    ],
)
def test_where_kernels_do_not_compile_the_exact_way_stays(
    error: Exception, words: str, products: SimpleNamespace
) -> None:
    def unpacked(apart: Any, dtype: torch.dtype) -> torch.Tensor:
        raise error

    products.unpacked = unpacked
    model = _packed_model("Q8_0")
    assert not device_ready.get_ready(model)
    (remark,) = device_ready.remarks(model)
    assert words in remark
    assert "--device cpu" in remark


def test_what_has_no_kernel_and_what_there_is_no_memory_for_stays(
    products: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no kernel for TQ1_0" in device_ready.why_not(
        random_blocks("TQ1_0", 4, 256), torch.float32
    )
    model = _packed_model("Q8_0")

    def without_memory(matrix: Any) -> Any:
        if matrix.num_rows > 24:
            raise torch.OutOfMemoryError("out of memory")
        return split(matrix)

    monkeypatch.setattr(device_ready, "split", without_memory)
    device_ready.get_ready(model)
    assert any("no memory" in remark for remark in device_ready.remarks(model))
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=IDS).logits).all()


def test_prompts_are_unpacked_a_part_at_a_time(
    products: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_computing, "_PART_WEIGHTS", 1500)
    matrix = random_blocks("Q4_K", 13, 512)
    rows = torch.randn((17, 512), generator=torch.Generator().manual_seed(1))
    expected = rows.double() @ reference(matrix).double().T
    found = device_computing.product(rows, split(matrix)).double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_kernel_of_a_gpu_of_which_a_file_is_damaged_goes_whole(tmp_path: Path) -> None:
    """Triton would look for the rest of it."""
    directory = tmp_path / "cache" / "kernels"
    directory.parent.mkdir()
    store = KernelStore()
    store.keep_in(directory)
    place = store.open()
    assert place is not None
    whole, damaged = (place / kernel_store.GPU_FOLDER / name for name in ("whole", "damaged"))
    for folder in (whole, damaged):
        folder.mkdir(parents=True)
        for name in ("kernel.json", "kernel.cubin"):
            (folder / name).write_text("right")
    store.seal()
    assert not store.has_kernels  # of the processor
    (damaged / "kernel.cubin").write_text("wrong")
    again = KernelStore()
    again.keep_in(directory)
    assert again.open() == place
    assert whole.is_dir()
    assert not damaged.exists()


@pytest.mark.parametrize(
    ("is_there", "compiler", "status", "words"),
    [
        (True, "/usr/bin/gcc", "ok", "kernels by triton"),
        (True, None, "note", "finds no C compiler"),
        (False, "/usr/bin/gcc", "note", "triton is not installed"),
    ],
)
def test_the_doctor_says_what_compiles_for_a_gpu(
    is_there: bool, compiler: str | None, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if not is_there:
            raise metadata.PackageNotFoundError(name)
        return "3.7.0"

    monkeypatch.setattr(machine.metadata, "version", version)
    monkeypatch.setattr(machine.shutil, "which", lambda name: compiler)
    monkeypatch.delenv("CC", raising=False)
    found = machine._gpu_kernels()
    assert (found.status, words in found.detail) == (status, True)
