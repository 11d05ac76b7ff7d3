"""What chatcache runs on: Python, packages, devices, memory, and what segments may take of it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from chatcache.budgets import disk_budget, ram_budget, vram_words
from chatcache.config import Settings
from chatcache.doctor.finding import Finding
from chatcache.errors import ChatcacheError
from chatcache.formatting import size
from chatcache.machine import allowance, has_nvidia_gpu

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors"),
    *("numba", "gguf", "msgspec", "textual", "httpx2", "xxhash", "tomlkit"),
)
DEVICE_SECONDS = 120
DEVICE_PROBE = """
import sys
import torch
chosen, allowed = map(int, sys.argv[1:])
num_threads = chosen or min(allowed, torch.get_num_threads())
names = ["cpu (%d thread%s)" % (num_threads, "s" * (num_threads > 1))]
if torch.cuda.is_available():
    names += ["cuda (%s)" % torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
if torch.backends.mps.is_available():
    names.append("mps")
print(", ".join(names))
"""


def surroundings(load: Callable[[], Settings]) -> Iterator[Finding]:
    """All of it. `load` gives the settings, or raises what is wrong with them."""
    yield _python()
    yield from _packages()
    yield _devices(load)
    yield _machine()
    yield from _budgets(load)
    if has_nvidia_gpu():
        yield _gpu_kernels()


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", "ok", detail)


def _packages() -> Iterator[Finding]:
    wanted = _requirements()
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "problem", "not installed", "Install chatcache again with pip.")
            continue
        specifier = wanted.get(name)
        if specifier and not specifier.contains(version, prereleases=True):
            advice = "It was not tested with this version; install chatcache again with pip."
            yield Finding(name, "note", f"{version}, expected {specifier}", advice)
        else:
            yield Finding(name, "ok", version)


def _requirements() -> dict[str, SpecifierSet]:
    """What chatcache asks for, by package; nothing when it runs without being installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("chatcache") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in lines]
    return {needed.name: needed.specifier for needed in requirements if needed.marker is None}


def _devices(load: Callable[[], Settings]) -> Finding:
    """What torch would compute on, and with how many threads the engine does."""
    try:
        chosen = load().config.model.threads or 0
    except ChatcacheError:
        chosen = 0  # the settings have a finding of their own
    numbers = [str(chosen), str(allowance().num_threads)]
    try:
        asked = subprocess.run(
            [sys.executable, "-c", DEVICE_PROBE, *numbers],
            capture_output=True,
            text=True,
            timeout=DEVICE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("devices", "problem", f"torch did not answer: {error}", "Install it again.")
    if asked.returncode == 0:
        return Finding("devices", "ok", asked.stdout.strip())
    last_line = (asked.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding("devices", "problem", f"torch does not start: {last_line}", "Install it again.")


def _machine() -> Finding:
    """How much of the machine may be used."""
    found, why = allowance(), ""
    cpus, memory = f"{found.num_host_cpus} CPUs", size(found.host_bytes)
    if found.is_less:
        cpus, memory = f"{found.num_cpus:.3g} of {cpus}", f"{size(found.memory_bytes)} of {memory}"
        why = " (limits of the container, the service or the shell)"
    return Finding("machine", "ok", f"{cpus}, {memory} of memory{why}")


def _gpu_kernels() -> Finding:
    """What compiles kernels of a GPU for packed weights."""
    name, cost = "packed weights on the GPU", "so torch unpacks them at each step, which is slow"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        advice = "torch's builds for CUDA on Linux bring it."
        return Finding(name, "note", f"triton is not installed, {cost}", advice)
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        advice = "Install gcc or clang, or name a compiler in CC."
        return Finding(name, "note", f"triton {version} finds no C compiler, {cost}", advice)
    return Finding(name, "ok", f"kernels by triton {version} and {compiler}")


def _budgets(load: Callable[[], Settings]) -> Iterator[Finding]:
    """What segments may take at most, and whether that leaves room for a model."""
    try:
        settings, memory = load(), allowance().memory_bytes
        ram, disk = ram_budget(settings, memory), disk_budget(settings)
    except (ChatcacheError, OSError):
        return  # the settings and the directory have findings of their own
    advice = ""
    if ram.is_chosen and ram.num_bytes > memory // 2:
        advice = "That leaves little for the model: `chatcache config set cache.ram_budget 25%`."
    yield Finding("cache in memory", "note" if advice else "ok", ram.words, advice)
    if has_nvidia_gpu():
        yield Finding("cache on the GPU", "ok", vram_words(settings))
    yield Finding("cache on disk", "ok", disk.words)
