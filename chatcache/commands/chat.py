"""`chatcache [SESSION]`: the chat in the terminal."""

from __future__ import annotations

import difflib
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import Parser, settings_of
from chatcache.config import Settings
from chatcache.errors import NotFoundError, UsageError, did_you_mean
from chatcache.frontend.progress import Report
from chatcache.frontend.shell_output import is_terminal

LIKE_A_COMMAND = 0.65  # "aks" is like "ask"; "no-such-session" is not like "sessions"


def configure(parser: Parser) -> None:
    parser.add_argument(
        "session", nargs="?", metavar="SESSION", help="name or id; left out: the last one"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="lines instead of a screen: for screen readers, dumb terminals and pipes",
    )
    parser.add_engine()


def run(arguments: Namespace) -> int:
    from chatcache import compose  # not for --help

    settings = settings_of(arguments)
    session_id = None
    if arguments.session is not None:
        session_id = _find(settings, arguments.session)
    has_terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    can_only_show_lines = has_terminal and os.environ.get("TERM") == "dumb"
    if arguments.plain or can_only_show_lines:
        compose.run_plain(settings, session_id, partial(_findings, arguments))
        return 0
    # A browser stands behind the pipes of `serve-web`.
    if not has_terminal and "TEXTUAL_DRIVER" not in os.environ:
        raise UsageError(
            "The chat needs a terminal, and this is not one.",
            "For scripts there is `chatcache ask`, and `--plain` for a chat through pipes.",
        )
    compose.run_tui(settings, session_id, partial(_findings, arguments))
    return 0


def _findings(arguments: Namespace, report: Report) -> Iterator[str]:
    from chatcache.commands.doctor import examine, lines_of

    return (line for finding in examine(arguments, report) for line in lines_of(finding))


def _find(settings: Settings, reference: str) -> str:
    """The id of a session. A word that names none but resembles a command is told as a typing
    error of that command."""
    from chatcache import compose

    try:
        with compose.opened_service(settings, has_engine=False) as service:
            return service.find_session(reference).session_id
    except NotFoundError as error:
        if difflib.get_close_matches(reference.lower(), GROUPS, n=1, cutoff=LIKE_A_COMMAND):
            raise UsageError(
                f"There is no command or session {reference!r}.", did_you_mean(reference, GROUPS)
            ) from error
        raise


COMMANDS = {"": ShellCommand("the chat in the terminal", configure, run)}
