"""Compiled kernels are kept: found again, compiled anew when damaged, and read from nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chatcache.backends.local.packed.kernel_store import KernelStore

_SCRIPT = """
import sys, ctypes
from pathlib import Path
from chatcache.backends.local.packed.kernel_store import STORE
if sys.argv[1]:
    STORE.keep_in(Path(sys.argv[1]))
from chatcache.backends.local.packed import kernels
from chatcache.backends.local.packed.blocks import KINDS
kernels.product_rows(KINDS["Q4_K"].ggml_type)
kernels.product_rows(KINDS["Q4_1"].ggml_type)
print(sum(made.cache_hits for made in kernels._COMPILED))
import torch
torch.manual_seed(0)
from chatcache.backends.local.packed.blocks import BlockMatrix
from chatcache.backends.local.packed.modules import BlockLinear
blocks = torch.zeros((4, 144), dtype=torch.uint8)
blocks[:, 1] = 0x3C
blocks[:, 4:] = 0x11
print(BlockLinear(BlockMatrix(KINDS["Q4_K"], blocks, 256))(torch.ones(1, 256)).tolist())
"""


def run(directory: Path | str, **environment: str) -> tuple[int, str]:
    """How many of two kernels were found, and a product."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    hits, product = done.stdout.splitlines()
    return int(hits), product


def kept(directory: Path) -> list[Path]:
    return list(directory.rglob("*.nb?"))


def test_kernels_are_found_again_and_damage_is_compiled_anew(tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "kernels"
    hits, product = run(directory)
    assert hits == 0
    assert kept(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert run(directory) == (2, product)
    for path in kept(directory):
        path.write_bytes(path.read_bytes()[:100])
    assert run(directory) == (0, product)
    for path in kept(directory):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        path.write_bytes(damaged)
    assert run(directory) == (0, product)
    assert run(directory) == (2, product)


def test_a_directory_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "kernels")[0] == 0


def test_what_others_can_write_or_a_link_leads_to_is_not_read(tmp_path: Path) -> None:
    store, directory = KernelStore(), tmp_path / "kernels"
    store.keep_in(directory)
    place = store.open()
    assert place is not None
    assert place.parent == directory
    directory.chmod(0o770)
    store.keep_in(directory)
    assert store.open() is None
    directory.chmod(0o700)
    (tmp_path / "link").symlink_to(directory)
    store.keep_in(tmp_path / "link")
    assert store.open() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_not_read(tmp_path: Path) -> None:
    directory = tmp_path / "kernels"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, -1)
    store = KernelStore()
    store.keep_in(directory)
    assert store.open() is None


def test_versions_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    old, recent = tmp_path / "kernels" / "0", tmp_path / "kernels" / "1"
    for folder in (old, recent):
        folder.mkdir(parents=True, mode=0o700)
    tmp_path.joinpath("kernels").chmod(0o700)
    os.utime(old, (1.0, 1.0))
    store = KernelStore()
    store.keep_in(tmp_path / "kernels")
    assert store.open() is not None
    assert recent.exists()
    assert not old.exists()


@pytest.mark.parametrize("processor", ["haswell", "nehalem", "x86-64"])
def test_narrower_processors_get_the_same_product(processor: str) -> None:
    features = {"haswell": "+avx2,+fma,+f16c"}.get(processor, "-avx")
    narrow = run("", NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features)
    assert narrow == run("")  # small whole numbers: exact on each


def test_the_engine_does_not_import_the_compiler() -> None:
    """Models whose weights are not packed need none."""
    script = "import sys, chatcache.backends.local.run.assemble as a; print('numba' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
