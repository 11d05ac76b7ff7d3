"""Starts the engine process and sees to its end.

Owns: its command line, its environment, and the log that everything it prints goes to. Knows
nothing of what is said on the channel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

from chatcache.backends.local.engine.channel import Channel
from chatcache.backends.local.engine.codec import Codec
from chatcache.logs import open_private

log = logging.getLogger(__name__)

EXIT_SECONDS = 5.0
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)


class ChildProcess(subprocess.Popen[bytes]):
    """A process of ours, which may outlive us: forgetting it is no mistake."""

    def __del__(self) -> None:
        pass


def start_process(
    command: Sequence[str], log_path: Path, descriptors: Sequence[int], *, is_staying: bool = False
) -> ChildProcess:
    """Run `command` with `descriptors` open. Raises OSError.

    One that `is_staying` has a session of its own: closing the terminal does not reach it."""
    log_file = open_log(log_path)
    try:
        with _interrupts_blocked():
            return ChildProcess(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=descriptors,
                env=_environment(),
                cwd=_working_directory(),
                start_new_session=is_staying,
            )
    finally:
        if log_file != subprocess.DEVNULL:
            os.close(log_file)


def start_with_channel(
    command: Sequence[str], log_path: Path, codec: Codec
) -> tuple[ChildProcess, Channel]:
    """Run `command --fd N`; returns the process and our end of its channel. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        descriptor = theirs.fileno()
        process = start_process([*command, "--fd", str(descriptor)], log_path, [descriptor])
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, Channel(ours, codec)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process started meanwhile never sees what the terminal sends to the whole group.

    The engine ignores these signals itself, but a Ctrl+C may come before it can say so.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_log(path: Path) -> int:
    """The descriptor that the engine's output goes to; a log that cannot be written is no log."""
    try:
        return open_private(path)
    except OSError:
        log.warning("the engine's log %s cannot be written", path)
        return subprocess.DEVNULL


def use_large_pages(environment: MutableMapping[str, str]) -> None:
    """Have torch ask Linux for large pages for its CPU tensors: memory is then touched for the
    first time 2 MiB at a time, which is most of the cost of keeping and restoring K and V.

    It counts for processes that have not imported torch yet."""
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _environment() -> dict[str, str]:
    """Ours; plus the place of a chatcache that is not installed, but run from a checkout.

    The engine is started with -P: a file `torch.py` in the user's directory must not be imported.
    """
    environment = dict(os.environ)
    use_large_pages(environment)
    root = str(Path(__file__).resolve().parents[3])
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([root, *([others] if others else [])])
    return environment


def _working_directory() -> Path | None:
    """None: ours. Where ours has been removed meanwhile torch does not start; anywhere else is
    fine then, for no relative path leads anywhere."""
    try:
        Path.cwd()
    except OSError:
        return Path(os.sep)
    return None


def end_process(process: subprocess.Popen[bytes], patience_seconds: float) -> int:
    """Wait for the end of a process; after that, make it end. Returns its exit code."""
    for seconds, end in (
        (patience_seconds, process.terminate),
        (EXIT_SECONDS, process.kill),
    ):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            end()
    return process.wait()


def exit_words(code: int) -> str:
    """An exit code in words; a negative one is a signal."""
    if code >= 0:
        return f"exit code {code}"
    names = {9: "killed; perhaps the memory was full", 11: "segmentation fault", 6: "aborted"}
    return f"signal {-code}, {names[-code]}" if -code in names else f"signal {-code}"
