"""Every test has its own directories, and no test asks the network for a model."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from chatcache.backends.local.model.stores import folders, package
from chatcache.backends.local.packed.kernel_store import KERNELS_VARIABLE, STORE

MAX_WORKERS = 4
_RUNTIME = Path(tempfile.gettempdir()) / f"ccrun-{os.getpid()}"
SLOW_DIRECTORIES = ("crash", "e2e", "equivalence")

# Before torch is imported, here and in what tests start: several processes share the cores, and a
# thread that waits for another at OpenMP's barrier burns the core that the other one needs.
os.environ["OMP_NUM_THREADS"] = "1"
# What tests start again and again is compiled once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
KERNELS = Path(__file__).parent.parent / ".pytest_cache" / "kernels"
KERNELS.parent.mkdir(exist_ok=True)
os.environ[KERNELS_VARIABLE] = str(KERNELS)
STORE.keep_in(KERNELS)
# How long an example takes says nothing where several processes share the cores.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# What is run in the background, or under `nohup`, is started without them; tests interrupt.
for ignored, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker per core for a run of directories; none where only files are named."""
    if all(".py" in argument for argument in config.args):
        return 0
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(MAX_WORKERS)
    return min(len(cores), MAX_WORKERS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and put them first, so that at the end no worker waits for one."""
    for item in items:
        if item.path.parent.name in SLOW_DIRECTORIES:
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def live_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have settings, conversations, segments and logs below `home`, here and in child processes."""
    monkeypatch.setenv("CHATCACHE_DATA_DIR", str(home / "data"))
    monkeypatch.setenv("CHATCACHE_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("CHATCACHE_CONFIG", str(home / "config.toml"))
    monkeypatch.delenv("CHATCACHE_MODEL", raising=False)
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    # No engine outlives its last chat, unless a test wants that.
    monkeypatch.setenv("CHATCACHE_KEEP_ALIVE", "0")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(_RUNTIME))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(home / "llama.cpp"))
    monkeypatch.setenv("PYTHONUTF8", "1")


@pytest.fixture(scope="session", autouse=True)
def _runtime_dir() -> Iterator[None]:
    """The directory for sockets: their paths must be short."""
    _RUNTIME.mkdir(mode=0o700)
    yield
    shutil.rmtree(_RUNTIME, ignore_errors=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for settings, conversations, segments and logs; returns its directory."""
    home = tmp_path / "home"
    home.mkdir()
    live_in(home, monkeypatch)
    return home


@pytest.fixture(autouse=True)
def _no_models_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else is installed on this machine changes no list of models."""
    monkeypatch.setattr(package, "stored", list)
    monkeypatch.setattr(folders, "lm_studio", list)


@pytest.fixture(autouse=True)
def _log_of_one_test() -> Iterator[None]:
    """Take back where a test sent the log, so that the next one does not write there."""
    yield
    logger = logging.getLogger("chatcache")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
