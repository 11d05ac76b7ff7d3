"""The engine process: its command line, its signals, its log, and its end.

What native code prints goes to the log, which is this process's stdout and stderr. It is given
either one connection, and ends with it, or the place of an engine that stays.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from chatcache import __version__
from chatcache.backends.base import ModelLoading
from chatcache.backends.local.engine.lifetime import Lifetime
from chatcache.backends.local.engine.residence import EnginePlace, HeldPlace
from chatcache.backends.local.engine.server import Emit, EngineServer, Runner, RunnerFactory
from chatcache.backends.local.engine.settings import EngineSettings

log = logging.getLogger(__name__)


def prepare_process() -> None:
    """What every process of ours that computes does first."""
    faulthandler.enable()
    # The terminal sends these to the whole group; the front end decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def inherited_socket(descriptor: int) -> socket.socket:
    """A socket that was handed over; processes that are started here do not have it."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def build_runner(settings: EngineSettings, emit: Emit) -> Runner:
    """Import torch, load the model, open its cache."""
    if settings.is_offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    emit(ModelLoading("starting torch"))
    from chatcache.backends.local.model.libraries import collector_off, import_libraries

    with collector_off():
        import_libraries()
        from chatcache.backends.local.run import assemble

        return assemble.build_runner(assemble.load(settings, emit), settings, emit)


def main(arguments: Sequence[str] | None = None, factory: RunnerFactory = build_runner) -> int:
    """The life of an engine process."""
    parser = argparse.ArgumentParser(prog="chatcache-engine")
    parser.add_argument("--fd", type=int, required=True, help="a connection, or a listening socket")
    parser.add_argument("--lock", type=int, help="the lock of the place of an engine that stays")
    parser.add_argument("--place", type=Path, help="the directory of that place")
    parser.add_argument("--key", help="the name of that place")
    options = parser.parse_args(arguments)
    prepare_process()
    connection = inherited_socket(options.fd)
    if options.lock is None:
        server = EngineServer(Lifetime(stamp=lambda: ()))
        server.reception.connect(connection)
    else:
        held = HeldPlace(EnginePlace(options.place, options.key), options.lock, connection)
        held.describe({"pid": os.getpid(), "version": __version__, "started_at": time.time()})
        os.chdir(os.sep)  # it would keep a disk from being unmounted
        server = EngineServer(Lifetime(held.is_reachable), held)
        server.reception.listen(connection)
    _end_when_told(server)
    return server.serve(factory)


def _end_when_told(server: EngineServer) -> None:
    """SIGTERM: the system goes down, or somebody looked up the process."""

    told: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end() -> None:
        log.info("signal %d", told.get())
        server.end("it was told to end")

    def heard(number: int, _frame: FrameType | None) -> None:
        told.put(number)  # all that may be done here: what was interrupted may hold any lock

    threading.Thread(target=end, name="signals", daemon=True).start()
    signal.signal(signal.SIGTERM, heard)


def leave(code: int) -> None:
    """End this process. Everything is written out; tearing torch down only takes time."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
