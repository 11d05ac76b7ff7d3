"""`chatcache sessions export` and `import`: conversations to JSON or Markdown, and back."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chatcache import compose
from chatcache.chat.service import ChatService
from chatcache.chat.transfer import ALL_FORMAT, ALL_VERSION
from chatcache.chat.views import SessionSummary
from chatcache.commands.parser import Parser, settings_of
from chatcache.commands.prompt import read_bytes
from chatcache.config import Settings
from chatcache.errors import ChatcacheError, UsageError
from chatcache.formatting import one_line, plural
from chatcache.frontend.exports import speaker
from chatcache.frontend.shell_output import Narrator, print_json, print_line, write_data


@contextmanager
def opened(arguments: Namespace) -> Iterator[tuple[Settings, ChatService]]:
    """The conversations, without an engine."""
    settings = settings_of(arguments)
    with compose.opened_service(settings, has_engine=False) as service:
        yield settings, service


def named_json(session: SessionSummary) -> dict[str, Any]:
    return {"session_id": session.session_id, "session": session.name}


# Export


def configure_export(parser: Parser) -> None:
    parser.description = (
        "Write a session to stdout, as JSON that `sessions import` reads: the messages from the\n"
        "first to the last one. With --all also what stands on its other branches; and without\n"
        "SESSION, all sessions with all of their branches."
    )
    parser.add_argument(
        "session", metavar="SESSION", nargs="?", help="name, id, or beginning of the id"
    )
    parser.add_argument("--all", action="store_true", help="all branches; all sessions")
    parser.add_argument("--markdown", action="store_true", help="for reading, not for import")
    parser.add_json()


def export(arguments: Namespace) -> int:
    if arguments.markdown and arguments.json:
        raise UsageError("--markdown and --json say different things.", "Choose one.")
    if arguments.session is None and not arguments.all:
        raise UsageError("No session is named.", "Name one, or write --all for all of them.")
    with opened(arguments) as (_, service):
        if arguments.session is None:
            return _export_all(service, as_markdown=arguments.markdown)
        session = service.find_session(arguments.session)
        if arguments.markdown:
            _print_markdown(service, session)
        else:
            print_json(service.export_session(session.session_id, is_whole=arguments.all))
        if arguments.markdown or not arguments.all:
            _say_what_is_left_out(service, [session])
    return 0


def _export_all(service: ChatService, *, as_markdown: bool) -> int:
    """One after the other; one that is damaged keeps no other back."""
    sessions = service.list_sessions()
    code = 0
    separator = ""
    if not as_markdown:
        head = {"format": ALL_FORMAT, "version": ALL_VERSION, "exported_at": int(time.time())}
        write_data(json.dumps(head)[:-1] + ', "sessions": [')
    for session in sessions:
        try:
            if as_markdown:
                _print_markdown(service, session)
            else:
                document = service.export_session(session.session_id, is_whole=True)
                write_data(f"{separator}\n{json.dumps(document)}")
                separator = ","
        except ChatcacheError as error:
            if error.exit_code != 5:
                raise
            Narrator().warn(f"{one_line(session.name)} is left out: {error.message}")
            code = error.exit_code
    if as_markdown:
        _say_what_is_left_out(service, sessions)
    else:
        write_data("\n]}\n", is_last=True)
    return code


def _print_markdown(service: ChatService, session: SessionSummary) -> None:
    messages = service.transcript(session.session_id)
    print_line(f"# {session.name}")
    for message in messages:
        print_line(f"\n## {one_line(speaker(message))}\n\n{message.text.rstrip()}")


def _say_what_is_left_out(service: ChatService, sessions: list[SessionSummary]) -> None:
    num_left = sum(service.num_beside(session.session_id) for session in sessions)
    if num_left:
        verb = "is" if num_left == 1 else "are"
        Narrator().warn(
            f"{plural(num_left, 'message')} on other branches {verb} not in it;"
            " `chatcache sessions export --all` has everything."
        )


# Import


def configure_import(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="from `sessions export`; `-`: stdin")
    parser.add_json()


def import_file(arguments: Namespace) -> int:
    try:
        document = json.loads(read_bytes(arguments.file, Narrator().warn))
    except (ValueError, RecursionError) as error:  # the latter: brackets nested by the thousand
        raise UsageError(
            f"{one_line(arguments.file)} is not JSON: {error}.",
            "Import what `sessions export` wrote.",
        ) from error
    with opened(arguments) as (_, service):
        if isinstance(document, dict) and document.get("format") == ALL_FORMAT:
            return _import_all(service, document, arguments)
        session = service.import_session(document)
    if arguments.json:
        print_json(named_json(session))
    else:
        print_line(session.name)
    return 0


def _import_all(service: ChatService, document: dict[str, Any], arguments: Namespace) -> int:
    """Each for itself; what is here already is not made twice."""
    documents, version = document.get("sessions"), document.get("version")
    if version != ALL_VERSION or not isinstance(documents, list):
        raise UsageError(
            f"The sessions were exported in format {version}, this chatcache knows {ALL_VERSION}.",
            "Import them with the chatcache that wrote them, or a newer one.",
        )
    imported: list[SessionSummary] = []
    num_here, code = 0, 0
    for number, each in enumerate(reversed(documents), start=1):  # the last used one comes last
        try:
            if service.is_here(each):
                num_here += 1
            else:
                imported.append(service.import_session(each))
        except ChatcacheError as error:
            Narrator().warn(f"Session {len(documents) - number + 1} is left out: {error.message}")
            code = max(code, error.exit_code)
    if num_here:
        verb = "was" if num_here == 1 else "were"
        Narrator().warn(f"{plural(num_here, 'session')} {verb} here already, word for word.")
    if arguments.json:
        print_json({"imported": list(map(named_json, imported)), "here_already": num_here})
    else:
        for session in imported:
            print_line(session.name)
    return code
