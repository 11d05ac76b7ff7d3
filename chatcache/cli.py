"""The shell: finds the command, runs it, and turns what went wrong into a sentence and a code.

Owns the dispatch, the exit codes and the log of unexpected errors. Commands are in `commands/`,
and are imported only when they are run: `--help` costs no more than argparse.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from chatcache import __version__
from chatcache.commands import GROUPS, Commands, ShellCommand
from chatcache.commands.parser import VALUE_OPTIONS, Parser
from chatcache.errors import ChatcacheError, UsageError, did_you_mean
from chatcache.formatting import one_line
from chatcache.frontend.shell_output import is_terminal, write_data

EXIT_UNEXPECTED = 1
EXIT_INTERRUPTED = 130
DESCRIPTION = """\
A terminal chat on a local model that keeps what the model has read: going back to a
conversation, or forking it at an earlier turn, costs a read instead of a new prefill.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Shows no traceback, whatever happens."""
    words = sys.argv[1:] if words is None else words
    _set_up_streams()
    try:
        return _run_to_the_end(words)
    except ChatcacheError as error:
        _discard_unwritten()
        return _say(error.exit_code, f"{error.message} {error.hint}")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader had enough (`chatcache sessions list | head -1`); that is no failure.
        _discard_unwritten()
        return 0
    except Exception as error:
        return _say_unexpected(error)


def _run_to_the_end(words: Sequence[str]) -> int:
    """Run the command and write out what is left for stdout."""
    try:
        code = run(words)
    except SystemExit as leaving:  # argparse, after --help and --version
        code = int(leaving.code or 0)
    try:
        write_data("", is_last=True)
    except BrokenPipeError:
        _discard_unwritten()
    return code


def run(words: Sequence[str]) -> int:
    """Find and run the command of `words`. Raises ChatcacheError."""
    group, rest = _split(words)
    if group is None or group not in GROUPS:
        return _run_chat(words)
    if group == "bench":  # has options of its own, and no settings
        bench_code: int = importlib.import_module("chatcache.bench").main(rest)
        return bench_code
    commands: Commands = importlib.import_module(
        f"chatcache.commands.{group.replace('-', '_')}"
    ).COMMANDS
    prog = f"chatcache {group}"
    if "" in commands:
        return _run_command(commands[""], prog, rest)
    name, rest_of_name = _split(rest)
    if name is None:
        parser = _group_parser(group, commands)
        parser.parse(rest)
        raise UsageError(
            f"`{prog}` needs a word that says what to do.", f"One of {', '.join(commands)}."
        )
    if name not in commands:
        raise UsageError(
            f"There is no command `{prog} {name}`.",
            did_you_mean(name, commands) or f"There are {', '.join(commands)}.",
        )
    return _run_command(commands[name], f"{prog} {name}", rest_of_name)


def _run_command(command: ShellCommand, prog: str, words: Sequence[str]) -> int:
    summary = command.summary[:1].upper() + command.summary[1:]
    parser = Parser(prog, description=f"{summary}.")
    command.configure(parser)
    parser.add_places()
    return command.run(parser.parse(words))


def _run_chat(words: Sequence[str]) -> int:
    from chatcache.commands import chat

    listing = "\n".join(f"  {name:<10} {summary}" for name, summary in GROUPS.items())
    parser = Parser(
        "chatcache",
        usage="chatcache [SESSION] [OPTIONS]\n       chatcache COMMAND ...",
        description=DESCRIPTION,
        epilog=f"commands:\n{listing}\n\n`chatcache COMMAND --help` tells more.",
    )
    parser.add_argument("--version", action="version", version=f"chatcache {__version__}")
    chat.COMMANDS[""].configure(parser)
    parser.add_places()
    arguments, unknown = parser.parse_known_args(list(words))
    extra_words = [word for word in unknown if not word.startswith("-")]
    if arguments.session is not None and extra_words:
        raise UsageError(
            f"There is no command {arguments.session!r}.",
            did_you_mean(arguments.session, GROUPS) or "See `chatcache --help`.",
        )
    return chat.COMMANDS[""].run(parser.parse(words))


def _group_parser(group: str, commands: Commands) -> Parser:
    listing = "\n".join(f"  {name:<10} {command.summary}" for name, command in commands.items())
    parser = Parser(
        f"chatcache {group}",
        usage=f"chatcache {group} COMMAND ...",
        epilog=f"commands:\n{listing}\n\n`chatcache {group} COMMAND --help` tells more.",
    )
    parser.add_places()
    return parser


def _split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first word that is no option, and all the others in order.

    Options of places and of the model may stand before the command: they are handed on to it.
    """
    takes_value = False
    for index, word in enumerate(words):
        if takes_value:
            takes_value = False
        elif word == "--":
            break
        elif not word.startswith("-") or word == "-":
            return word, [*words[:index], *words[index + 1 :]]
        else:
            takes_value = word in VALUE_OPTIONS
    return None, list(words)


def _set_up_streams() -> None:
    """A name with odd bytes, or a terminal without UTF-8, must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _say(code: int, sentences: str) -> int:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            # A progress line may stand there; it is not worth keeping.
            start = "\r\x1b[K" if is_terminal(sys.stderr) else ""
            sys.stderr.write(f"{start}chatcache: {one_line(sentences)}\n")
            sys.stderr.flush()
    return code


def _say_unexpected(error: Exception) -> int:
    """Whatever else fails meanwhile, there is a line and a code."""
    try:
        message = str(error) or "no message"
    except Exception:
        message = "no message"
    try:
        place: object = _logged(error)
    except Exception as another:  # why there was an error may be why it cannot be logged
        place = _kept_in_temporary_file(error, another)
    where = f"Please report it with {place}." if place else "The log could not be written."
    return _say(EXIT_UNEXPECTED, f"Unexpected {type(error).__name__}: {message}. {where}")


def _logged(error: Exception) -> object:
    from chatcache.config import resolve_paths
    from chatcache.logs import log_unexpected

    return log_unexpected(error, resolve_paths({}, os.environ)[0].error_log)


def _kept_in_temporary_file(*errors: Exception) -> str | None:
    """Where the tracebacks are; None when they could not be written."""
    try:
        import tempfile
        import traceback

        descriptor, place = tempfile.mkstemp(prefix="chatcache-error-", suffix=".log")
        with os.fdopen(descriptor, "w", errors="replace") as file:
            for error in errors:
                traceback.print_exception(error, file=file)
    except Exception:
        return None
    return place


def _discard_unwritten() -> None:
    """Let what stdout still holds go nowhere, where it cannot be written to its end.

    The interpreter flushes it once more when it ends, and would complain.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
