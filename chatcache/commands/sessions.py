"""`chatcache sessions`: conversations, without a model."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from typing import Any

from chatcache.chat.views import SessionSummary, TranscriptMessage
from chatcache.commands import ShellCommand
from chatcache.commands.parser import Parser
from chatcache.commands.session_files import (
    configure_export,
    configure_import,
    export,
    import_file,
    named_json,
    opened,
)
from chatcache.commands.session_tree import draw_tree, held_kv, tree_json
from chatcache.formatting import clean, model_label, moment, one_line, plural, shorten, table
from chatcache.frontend.changes import HISTORY_MODES, MODE_WORDS
from chatcache.frontend.exports import speaker
from chatcache.frontend.shell_output import (
    Narrator,
    is_terminal,
    print_json,
    print_line,
    print_result,
)

NAME_WIDTH = 44


def _configure_one(parser: Parser) -> None:
    parser.add_session()
    parser.add_json()


# list and show


def list_all(arguments: Namespace) -> int:
    with opened(arguments) as (settings, service):
        sessions = service.list_sessions()
        if arguments.json:
            held = held_kv(settings, service, [[session.session_id] for session in sessions])
            print_json({"sessions": list(map(_entry, sessions, held))})
            return 0
    if not sessions:
        Narrator().note("There are no sessions yet.")
        return 0
    now = time.time()
    rows = [
        (
            shorten(session.name, NAME_WIDTH),
            f"{session.num_turns:,}",
            f"{session.num_tokens:,}",
            model_label(session.model or "", session.quantization),
            moment(session.updated_at, now),
            session.session_id,
        )
        for session in sessions
    ]
    print_line(table(("NAME", "TURNS", "TOKENS", "MODEL", "USED", "ID"), rows, "TURNS TOKENS"))
    return 0


def _entry(session: SessionSummary, kv: dict[str, int] | None) -> dict[str, Any]:
    """One session as JSON."""
    return {
        **named_json(session),
        "turns": session.num_turns,
        "tokens": session.num_tokens,
        "model": session.model,
        "updated_at": session.updated_at,
        "forked_from": session.forked_from,
        "history_mode": session.history_mode,
        "kv": kv,
    }


def show(arguments: Namespace) -> int:
    with opened(arguments) as (settings, service):
        session = service.find_session(arguments.session)
        messages = service.transcript(session.session_id)
        if arguments.json:
            (kv,) = held_kv(settings, service, [[session.session_id]])
            transcript = [_message_json(message) for message in messages]
            print_json(_entry(session, kv) | {"messages": transcript})
            return 0
    print_line(f"{session.name} ({session.session_id})")
    if session.history_mode == "append":
        print_line(MODE_WORDS["append"])
    for message in messages:
        print_line(_shown_message(message))
    return 0


def _message_json(message: TranscriptMessage) -> dict[str, Any]:
    return {
        "turn": message.turn,
        "role": message.role,
        "text": message.text,
        "reasoning": message.reasoning,
        "node_id": message.node_id,
        "model": message.model,
        "model_approximate": message.quantization or None,
        "finish_reason": message.finish_reason,
        "created_at": message.created_at,
    }


def _shown_message(message: TranscriptMessage) -> str:
    title = one_line(speaker(message))
    if message.turn:
        title += f", turn {message.turn}"
    if message.finish_reason in ("stopped", "length", "loop"):
        title += f" ({message.finish_reason})"
    return f"\n--- {title}\n{message.text.rstrip()}"


# Changing


def _configure_rename(parser: Parser) -> None:
    parser.add_session()
    parser.add_argument("name", metavar="NAME", help="the new name")
    parser.add_json()


def rename(arguments: Namespace) -> int:
    with opened(arguments) as (_, service):
        session = service.find_session(arguments.session)
        service.rename(session.session_id, arguments.name)
        return _print_named(service.find_session(session.session_id), arguments)


def _print_named(session: SessionSummary, arguments: Namespace) -> int:
    return print_result(named_json(session), session.name, as_json=arguments.json)


def _configure_mode(parser: Parser) -> None:
    parser.description = (
        "Say how the prompts of a session are made. canonical: what the template writes for the\n"
        "whole conversation; what it writes differently than before is read again. append: all\n"
        "that was read stays as it was read, and nothing is read again; the prompts then differ\n"
        "from what the model was trained on."
    )
    parser.add_session()
    parser.add_argument(
        "mode", metavar="MODE", nargs="?", choices=HISTORY_MODES, help="canonical or append"
    )
    parser.add_json()


def mode(arguments: Namespace) -> int:
    with opened(arguments) as (_, service):
        session = service.find_session(arguments.session)
        if arguments.mode is not None:
            service.set_history_mode(session.session_id, arguments.mode)
            session = service.find_session(session.session_id)
    data = {**named_json(session), "history_mode": session.history_mode}
    return print_result(data, MODE_WORDS[session.history_mode], as_json=arguments.json)


def _configure_delete(parser: Parser) -> None:
    parser.description = "Delete a session and the messages that no other session reaches."
    parser.add_session()
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_json()


def delete(arguments: Namespace) -> int:
    with opened(arguments) as (_, service):
        session = service.find_session(arguments.session)
        if not arguments.yes and is_terminal(sys.stdin) and not _is_confirmed(session):
            return 130
        service.delete(session.session_id)
        return _print_named(session, arguments)


def _is_confirmed(session: SessionSummary) -> bool:
    """Ask on the terminal: what is deleted cannot be brought back."""
    turns = plural(session.num_turns, "turn")
    sys.stderr.write(f"Delete {clean(session.name)!r} with its {turns}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# Searching, moving, drawing


def _configure_search(parser: Parser) -> None:
    parser.add_argument("text", metavar="TEXT", nargs="+", help="words that all must occur")
    parser.add_json()


def search(arguments: Namespace) -> int:
    with opened(arguments) as (_, service):
        hits = service.search(" ".join(arguments.text))
    if arguments.json:
        found = [
            {
                "session_id": hit.session_id,
                "session": hit.session_name,
                "turn": hit.turn,
                "role": hit.role,
                "node_id": hit.node_id,
                "snippet": hit.snippet,
            }
            for hit in hits
        ]
        print_json({"hits": found})
    elif hits:
        rows = [
            (shorten(hit.session_name, NAME_WIDTH), str(hit.turn) if hit.turn else "", hit.snippet)
            for hit in hits
        ]
        print_line(table(("SESSION", "TURN", "TEXT"), rows, "TURN"))
    else:
        Narrator().note("Nothing was found.")
    return 0


def show_tree(arguments: Namespace) -> int:
    with opened(arguments) as (settings, service):
        session = service.find_session(arguments.session)
        roots = service.tree.branches(session.session_id, is_reached=True).roots
        if arguments.json:
            tree = tree_json(roots, settings, service)
            print_json({"session_id": session.session_id, "tree": tree})
            return 0
    print_line(draw_tree(roots, session.session_id))
    return 0


COMMANDS = {
    "list": ShellCommand("the sessions, the last used first", Parser.add_json, list_all),
    "show": ShellCommand("one session, from the first message to the last", _configure_one, show),
    "rename": ShellCommand("give a session another name", _configure_rename, rename),
    "mode": ShellCommand("keep all that was read, or follow the template", _configure_mode, mode),
    "delete": ShellCommand("delete a session", _configure_delete, delete),
    "search": ShellCommand("find words in all sessions", _configure_search, search),
    "export": ShellCommand("write a session to stdout", configure_export, export),
    "import": ShellCommand("read a session that was exported", configure_import, import_file),
    "tree": ShellCommand("the forks of a session as a tree", _configure_one, show_tree),
}
