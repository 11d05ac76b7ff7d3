"""`chatcache fork`: a new session that shares the beginning of another one. No model is loaded."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from chatcache import compose
from chatcache.backends.base import CostEstimate
from chatcache.chat.views import ForkResult
from chatcache.checks import whole
from chatcache.commands import GROUPS, ShellCommand
from chatcache.commands.ask import TurnToSend, answer
from chatcache.commands.parser import Parser, number_option, sampling_options, settings_of
from chatcache.commands.prompt import build_prompt
from chatcache.errors import UsageError
from chatcache.formatting import duration, plural
from chatcache.frontend.shell_output import Narrator, print_json, print_line
from chatcache.frontend.shell_turn import watch_backend


def configure(parser: Parser) -> None:
    parser.add_argument("session", metavar="SESSION", help="name or id")
    parser.add_argument(
        "--at",
        metavar="TURN",
        type=number_option(whole(0), int),
        help="keep turns 1 to TURN; 0: the system prompt alone; left out: all",
    )
    parser.add_argument("--name", metavar="NAME", help="the name of the new session")
    parser.add_argument("--prompt", metavar="TEXT", help="send this in the new session")
    parser.add_sampling()
    parser.add_engine()
    parser.add_json()
    parser.add_quiet()


def run(arguments: Namespace) -> int:
    narrator = Narrator(arguments.quiet)
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UsageError("The prompt is empty.", "Leave --prompt out, or give it a text.")
    settings = settings_of(arguments, sampling_options(arguments))
    if arguments.prompt is not None:
        compose.check_model(settings)
    with compose.opened_service(settings, has_engine=False) as service:
        source = service.find_session(arguments.session)
        forked = service.fork(source.session_id, at_turn=arguments.at, name=arguments.name)
    if arguments.prompt is None:
        if arguments.json:
            print_json(fork_json(forked))
        else:
            print_line(forked.name)
            narrator.note(_sentence(forked, source.name))
        return 0
    narrator.note(_sentence(forked, source.name))
    prompt = build_prompt(arguments.prompt, [], narrator.warn, reads_stdin=False)
    with compose.opened_service(settings, "fork") as service:
        watch_backend(service, narrator, lambda: compose.sampling(settings))
        extra = {"fork": fork_json(forked)}
        turn = TurnToSend(forked.session_id, prompt)
        return answer(service, settings, turn, arguments, narrator, extra)


def fork_json(forked: ForkResult) -> dict[str, Any]:
    """The object of `fork --json`."""
    return {
        "session_id": forked.session_id,
        "session": forked.name,
        "forked_from": forked.forked_from,
        "at_turn": forked.at_turn,
        "shared_tokens": forked.shared_tokens,
        "kv_bytes_written": 0,
        "elapsed_ms": round(forked.elapsed_ms, 3),
        "cost": _cost_json(forked.cost),
    }


def _cost_json(cost: CostEstimate | None) -> dict[str, Any] | None:
    """None when no model has read the conversation, or only one whose cache is not here."""
    if cost is None:
        return None
    estimated_ms = cost.estimated_ms
    return {
        "ram_tokens": cost.ram_tokens,
        "disk_tokens": cost.disk_tokens,
        "recompute_tokens": cost.recompute_tokens,
        "estimated_ms": None if estimated_ms is None else round(estimated_ms, 3),
    }


def _sentence(forked: ForkResult, source: str) -> str:
    turns = f"turns 1 to {forked.at_turn}" if forked.at_turn else "the system prompt"
    shared = plural(forked.shared_tokens, "token")
    return (
        f"{forked.name!r} shares {turns} of {source!r} ({shared});"
        f" made in {duration(forked.elapsed_ms)}."
    )


COMMANDS = {"": ShellCommand(GROUPS["fork"], configure, run)}
