"""`chatcache demo`: what a prefix cache does, played with the built-in model.

Owns the directories that it is played in, which are gone afterwards. Words and segments of the user
are neither read nor written; only what is compiled for this processor is shared with the chats.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from types import FrameType
from typing import Any

from chatcache import compose
from chatcache.backends.local.packed.kernel_store import KERNELS_VARIABLE
from chatcache.commands import ShellCommand
from chatcache.commands.parser import Parser
from chatcache.commands.paths import paths_of
from chatcache.config import load_settings
from chatcache.errors import UsageError
from chatcache.frontend import radix_demo, radix_report
from chatcache.frontend.lens.page import flow
from chatcache.frontend.shell_output import (
    Narrator,
    is_terminal,
    print_json,
    print_line,
    write_data,
)
from chatcache.frontend.shell_turn import watch_backend

MIN_WIDTH, MAX_WIDTH = 60, 100
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def configure(parser: Parser) -> None:
    parser.description = (
        "Two chats with one system prompt, a few-shot request and its variations, in nine steps:\n"
        "how the radix tree of their keys and values grows, splits and gives up leaves, and what\n"
        "each turn reuses because of it. Played with the built-in model in a directory that is\n"
        "removed afterwards. After figure 3 of RadixAttention (arXiv 2312.07104)."
    )
    parser.add_argument(
        "--disk", action="store_true", help="with a disk: what is evicted is read again"
    )
    parser.add_argument("--step", action="store_true", help="wait for Enter after each step")
    parser.add_argument("--plain", action="store_true", help="sentences instead of a drawing")
    parser.add_json()
    parser.add_quiet()


def radix(arguments: Namespace) -> int:
    if arguments.step and (arguments.json or not is_terminal(sys.stdin)):
        raise UsageError(
            "--step waits for keys of a terminal, and there is none.", "Leave --step out."
        )
    narrator = Narrator(arguments.quiet)
    steps: list[dict[str, Any]] = []
    with _played_in_passing(arguments) as directory:
        options = radix_demo.settings_options(directory, has_disk=arguments.disk)
        with compose.opened_service(load_settings(options, {}), "demo") as service:
            watch_backend(service, narrator)
            demo = radix_demo.RadixDemo(service, has_disk=arguments.disk)
            _print_introduction(arguments)
            for step in demo.steps():
                narrator.release()
                if arguments.json:
                    steps.append(radix_report.data(step))
                    continue
                _print_step(step, arguments)
                if arguments.step and step.number < radix_demo.NUM_STEPS and not _goes_on():
                    break
    if arguments.json:
        found = {"disk": arguments.disk, "ram_budget_bytes": radix_demo.RAM_BUDGET}
        print_json(found | {"model": "builtin", "steps": steps})
    return 0


def _print_introduction(arguments: Namespace) -> None:
    if arguments.json:
        return
    introduction = radix_report.introduction(has_disk=arguments.disk)
    if arguments.plain:
        print_line(introduction)
    else:
        print_line("\n".join([*flow(introduction, _width()), radix_report.legend()]))
    write_data("", is_last=True)


def _print_step(step: radix_demo.DemoStep, arguments: Namespace) -> None:
    if arguments.plain:
        lines = list(radix_report.sentences(step))
    else:
        lines = list(radix_report.drawn(step, _width()))
    print_line("\n".join(["", *lines]))
    write_data("", is_last=True)  # whoever reads it from a pipe sees a step when it is played


def _width() -> int:
    return max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size((80, 24)).columns))


def _goes_on() -> bool:
    """Wait for Enter; False when somebody has seen enough."""
    sys.stderr.write("[Enter: the next step, q: enough] ")
    sys.stderr.flush()
    word = sys.stdin.readline()
    return bool(word) and word.strip().casefold() not in ("q", "quit", "exit")


@contextlib.contextmanager
def _played_in_passing(arguments: Namespace) -> Iterator[str]:
    """A directory that is removed at the end, also when a signal ends the command."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _ENDING_SIGNALS}
    kernels = os.environ.get(KERNELS_VARIABLE)
    os.environ[KERNELS_VARIABLE] = kernels or str(paths_of(arguments)[0].cache_dir / "kernels")
    try:
        with tempfile.TemporaryDirectory(
            prefix="chatcache-demo-", ignore_cleanup_errors=True
        ) as directory:
            yield directory
    finally:
        if kernels is None:
            del os.environ[KERNELS_VARIABLE]
        for number, handler in before.items():
            signal.signal(number, handler)


COMMANDS = {
    "radix": ShellCommand("nine steps of a radix tree of keys and values", configure, radix)
}
