"""Every test has its own directories, and no test asks the network for a model."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# What is run in the background, or under `nohup`, is started without them; tests interrupt.
for ignored, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for settings, conversations, segments and logs; returns its directory."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("CHATCACHE_DATA_DIR", str(home / "data"))
    monkeypatch.setenv("CHATCACHE_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("CHATCACHE_CONFIG", str(home / "config.toml"))
    monkeypatch.delenv("CHATCACHE_MODEL", raising=False)
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONUTF8", "1")
    return home


@pytest.fixture(autouse=True)
def _log_of_one_test() -> Iterator[None]:
    """Take back where a test sent the log, so that the next one does not write there."""
    yield
    logger = logging.getLogger("chatcache")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices are quicker without a second thread, above all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
