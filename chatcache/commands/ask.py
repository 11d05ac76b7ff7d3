"""`chatcache ask`: one turn without the TUI."""

from __future__ import annotations

import re
import shlex
from argparse import BooleanOptionalAction, Namespace
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from chatcache import compose
from chatcache.chat import unstable
from chatcache.chat.figures import turn_report
from chatcache.chat.service import ChatService
from chatcache.chat.views import SessionSummary
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.parser import Parser, sampling_options, settings_of
from chatcache.commands.prompt import build_prompt, decoded_argument, read_system
from chatcache.config import Settings
from chatcache.errors import ContextFullError, NotFoundError, UsageError
from chatcache.frontend.shell_output import AnswerStream, Narrator, print_json
from chatcache.frontend.shell_turn import ShellTurn, note_figures, watch_backend

SESSION_ID = re.compile(r"s_[0-9a-f]+")


def configure(parser: Parser) -> None:
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="`-`: standard input; a piped text is appended"
    )
    parser.add_argument(
        "--session", metavar="S", help="name or id; made if absent. Default: the last session"
    )
    parser.add_argument("--new", action="store_true", help="begin a new session")
    words = "wait for standard input to its end, or do not read it"
    parser.add_argument("--stdin", action=BooleanOptionalAction, default=None, help=words)
    parser.add_argument("--system", metavar="TEXT|@FILE", help="the system prompt")
    parser.add_argument(
        "--file", metavar="PATH", action="append", default=[], help="put before the prompt"
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="neither read nor write KV for this turn"
    )
    parser.add_argument("--no-save", action="store_true", help="do not keep this turn")
    parser.add_sampling()
    parser.add_engine()
    parser.add_json()
    parser.add_quiet()


def run(arguments: Namespace) -> int:
    if arguments.new and arguments.session is not None:
        raise UsageError(
            "--new and --session say different things.",
            "--session NAME begins a session of that name if there is none.",
        )
    narrator = Narrator(arguments.quiet)
    if arguments.prompt == "-" and arguments.stdin is False:
        raise UsageError("`-` and --no-stdin say different things.", "Leave one of them out.")
    prompt = build_prompt(
        arguments.prompt, arguments.file, narrator.warn, reads_stdin=arguments.stdin
    )
    system = None if arguments.system is None else read_system(arguments.system, narrator.warn)
    if told := unstable.warning(system, datetime.now()):
        narrator.note(told)
    settings = settings_of(arguments, sampling_options(arguments))
    compose.check_model(settings)
    with compose.opened_service(settings, "ask") as service:
        watch_backend(service, narrator, lambda: compose.sampling(settings))
        session_id = _session_id(service, arguments, system, narrator)
        turn = TurnToSend(
            session_id, prompt, system, use_cache=not arguments.no_cache, save=not arguments.no_save
        )
        return answer(service, settings, turn, arguments, narrator)


@dataclass(frozen=True, slots=True)
class TurnToSend:
    """What is said, where, and whether it is kept."""

    session_id: str
    prompt: str
    system: str | None = None
    use_cache: bool = True
    save: bool = True


def answer(
    service: ChatService,
    settings: Settings,
    turn: TurnToSend,
    arguments: Namespace,
    narrator: Narrator,
    extra: dict[str, Any] | None = None,
) -> int:
    """Send a prompt and print the answer; `extra` joins the JSON object. Returns the exit code."""
    shell_turn = ShellTurn(narrator, None if arguments.json else AnswerStream())
    options = replace(compose.sampling(settings).options, use_cache=turn.use_cache)
    system = None if turn.save else turn.system
    try:
        saved = shell_turn.run(
            service.send(turn.session_id, turn.prompt, options, save=turn.save, system=system)
        )
    except ContextFullError as error:
        if not turn.save:
            raise
        raise ContextFullError(error.message, _way_out(service, turn.session_id, error)) from error
    if arguments.json:
        print_json(turn_report(saved) | {"engine": _engine_json(service)} | (extra or {}))
    note_figures(narrator, saved)
    if shell_turn.is_cut:
        narrator.warn("The engine was ended in the middle of the answer; what was written is kept.")
    return shell_turn.exit_code


def _engine_json(service: ChatService) -> dict[str, Any] | None:
    """How this command came to its engine; None where a server answered."""
    use = None if service.backend is None else service.backend.engine_use()
    if use is None:
        return None
    return {
        "resident": use.is_resident,
        "started": use.is_started,
        "wait_ms": round(use.wait_ms, 3),
        "load_ms": round(use.load_ms, 3),
    }


def _way_out(service: ChatService, session_id: str, error: ContextFullError) -> str:
    """The hint for a message that does not fit: it is part of the session now, so only a fork
    without it, or another session, can go on."""
    session = service.find_session(session_id)
    answers = [message for message in service.transcript(session_id) if message.role == "assistant"]
    num_new = error.num_tokens - (answers[-1].num_tokens if answers else 0)
    if error.limit and num_new < error.limit:  # then it is the history that is too long
        answers = [answer for answer in answers if answer.num_tokens + num_new < error.limit]
    turn = answers[-1].turn if answers else 0
    return (
        f"`chatcache fork {shlex.quote(session.name)} --at {turn}` goes on from there without this"
        " message, `chatcache ask --new` begins another session."
    )


def _session_id(
    service: ChatService, arguments: Namespace, system: str | None, narrator: Narrator
) -> str:
    """The session to speak in, with the system prompt asked for.

    It is "" for a turn that is not kept and has no session to go on with.
    """
    session = None if arguments.new else _existing_session(service, arguments.session)
    if session is not None:
        _apply_system(service, session, system, arguments.no_save)
        if arguments.session is None:
            narrator.note(f"Going on with {session.name!r}; --new begins another session.")
        return session.session_id
    if arguments.no_save:
        return ""
    name = arguments.session
    if name is not None:
        name = decoded_argument(name, narrator.warn)
    return service.create_session(name, system).session_id


def _existing_session(service: ChatService, reference: str | None) -> SessionSummary | None:
    if reference is None:
        return service.last_session()
    try:
        return service.find_session(reference)
    except NotFoundError:
        if SESSION_ID.fullmatch(reference):
            raise
        return None


def _apply_system(
    service: ChatService, session: SessionSummary, system: str | None, is_unsaved: bool
) -> None:
    if system is None:
        return
    if not is_unsaved:
        service.set_system(session.session_id, system)
        return
    messages = service.transcript(session.session_id)
    before = messages[0].text if messages and messages[0].role == "system" else ""
    if system != before:
        raise UsageError(
            f"Session {session.name!r} has another system prompt, and --no-save changes nothing.",
            "Add --new, or leave --system out.",
        )


COMMANDS = {"": ShellCommand(GROUPS["ask"], configure, run)}
