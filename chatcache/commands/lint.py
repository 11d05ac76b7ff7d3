"""`chatcache lint`: what makes the beginning of a prompt change, and what that costs."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache import compose
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import Parser, settings_of
from chatcache.commands.prompt import MAX_BYTES, read_bytes
from chatcache.errors import NotFoundError
from chatcache.formatting import one_line
from chatcache.frontend.lint import finding as findings
from chatcache.frontend.lint.documents import read_document
from chatcache.frontend.lint.look import (
    look_at_chat,
    look_at_document,
    look_at_everything,
)
from chatcache.frontend.shell_output import Narrator, print_json, print_line
from chatcache.places import path_of

if TYPE_CHECKING:
    from chatcache.config import Settings
    from chatcache.frontend.lint.finding import LintFinding

FOUND = 5  # with --strict


def configure(parser: Parser) -> None:
    parser.description = (
        "Tell what makes the beginning of prompts change, so that it is read again: a date or an\n"
        "id in a system prompt, files before what stays, personas that differ early, a template\n"
        "that rewrites history, misses that come again. Without a name: all chats, and the\n"
        "personas of config.toml. No model is loaded. What it finds is advice: it exits with 0,\n"
        "and with --strict with 5 when there was something."
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="SESSION|FILE",
        help="a chat; or a file with a system prompt, requests as JSON or JSONL, or an exported"
        " chat; `-`: stdin",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 5 when something is found")
    parser.add_json()


def run(arguments: Namespace) -> int:
    settings = settings_of(arguments)
    target: str | None = arguments.target
    found = _look(settings, target)
    if arguments.json:
        print_json({"target": target, "findings": [findings.as_json(each) for each in found]})
    else:
        for line in findings.report(found):
            print_line(line)
    return FOUND if found and arguments.strict else 0


def _look(settings: Settings, target: str | None) -> list[LintFinding]:
    """A chat goes before a file of the same name, unless the name has a slash in it."""
    if target == "-" or (target and "/" in target and _is_file(target)):
        return _look_at_file(target)
    now = datetime.now(UTC)
    with compose.opened_service(settings, has_engine=False) as service:
        if target is None:
            return look_at_everything(service, settings.config.personas, now)
        try:
            session = service.find_session(target)
        except NotFoundError as error:
            if not _is_file(target):
                message = f"There is no session and no file {one_line(target)!r}."
                raise NotFoundError(message, error.hint) from error
        else:
            return look_at_chat(service, session)
    return _look_at_file(target)


def _is_file(name: str) -> bool:
    try:
        return path_of(name).exists()
    except (OSError, ValueError):
        return False


def _look_at_file(name: str) -> list[LintFinding]:
    document = read_document(read_bytes(name, Narrator().warn, MAX_BYTES), name)
    moments = [datetime.now(UTC)]
    if name != "-":
        moments.append(datetime.fromtimestamp(path_of(name).stat().st_mtime, UTC))
    title = "stdin" if name == "-" else Path(name).name
    return look_at_document(document, title, moments)


COMMANDS = {"": ShellCommand(GROUPS["lint"], configure, run)}
