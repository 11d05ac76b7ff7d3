"""`chatcache serve-web`: the chat in a browser. Needs the `web` extra."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
from argparse import Namespace

from chatcache.checks import whole
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import VALUE_OPTIONS, Parser, number_option, settings_of
from chatcache.errors import UnavailableError
from chatcache.frontend.shell_output import Narrator

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def configure(parser: Parser) -> None:
    parser.description = (
        "Show the chat in a browser. Each page is a chat, all on one engine. There is no\n"
        "password: who can reach the address can read and write all chats."
    )
    parser.add_argument("session", nargs="?", metavar="SESSION", help="left out: the last one")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument(
        "--port", metavar="N", default=8765, type=number_option(whole(1, 65535), int)
    )
    parser.add_argument("--public-url", metavar="URL", help="what browsers call it, behind a proxy")
    parser.add_engine()


def run(arguments: Namespace) -> int:
    settings_of(arguments)  # a wrong setting is said here, not on each page
    if importlib.util.find_spec("textual_serve") is None:
        raise UnavailableError(
            "The chat in a browser needs textual-serve, which is not installed.",
            "Install it with `pip install 'chatcache[web]'`.",
        )
    if arguments.host not in LOOPBACK:
        Narrator().warn(f"Everybody who reaches {arguments.host} can read and write all chats.")
    web = importlib.import_module("chatcache.tui.web")
    server = web.ChatServer(
        command_line(arguments), arguments.host, arguments.port, arguments.public_url
    )
    try:
        server.serve()
    except OSError as error:
        raise UnavailableError(
            f"Port {arguments.port} of {arguments.host} cannot be used: {error.strerror}.",
            "Choose another one with --port.",
        ) from error
    return 0


def command_line(arguments: Namespace) -> str:
    """The command that each page runs, with the options of this one."""
    words = [sys.executable, "-m", "chatcache"]
    for option, name in VALUE_OPTIONS.items():
        value = getattr(arguments, name, None)
        if value is not None:
            words += [option, str(value)]
    if arguments.offline:
        words.append("--offline")
    if arguments.keep_alive is not None:
        words.append("--no-engine")
    return shlex.join([*words, *([arguments.session] if arguments.session else [])])


COMMANDS = {"": ShellCommand(GROUPS["serve-web"], configure, run)}
