"""`chatcache [SESSION]`: the chat in the terminal."""

from __future__ import annotations

import difflib
import sys
from argparse import Namespace

from chatcache.commands import GROUPS, Command
from chatcache.commands.output import is_terminal
from chatcache.commands.parser import Parser, settings_of
from chatcache.config import Settings
from chatcache.errors import NotFoundError, UsageError, did_you_mean

LIKE_A_COMMAND = 0.65  # "aks" is like "ask"; "no-such-session" is not like "sessions"


def configure(parser: Parser) -> None:
    parser.add_argument(
        "session", nargs="?", metavar="SESSION", help="name or id; left out: the last one"
    )
    parser.add_engine()


def run(arguments: Namespace) -> int:
    from chatcache import compose

    settings = settings_of(arguments)
    session_id = None
    if arguments.session is not None:
        session_id = _find(settings, arguments.session)
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise UsageError(
            "The chat needs a terminal, and this is not one.",
            "For scripts and pipes there is `chatcache ask`.",
        )
    compose.run_tui(settings, session_id)
    return 0


def _find(settings: Settings, reference: str) -> str:
    """The id of a session. A word that is none, but almost a command, is taken for one."""
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


COMMANDS = {"": Command("the chat in the terminal", configure, run)}
