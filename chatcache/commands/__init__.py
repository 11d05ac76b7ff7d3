"""The commands of the shell, one module per group; `cli.py` finds, parses and runs them.

Each module has `COMMANDS`: what it can do, by the word that follows the group's name (the empty
word for a group that is a single command). Modules are imported when their command is run.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chatcache.commands.parser import Parser


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """One command: its help, its options, and what runs it. `run` returns the exit code."""

    summary: str
    configure: Callable[[Parser], None]
    run: Callable[[Namespace], int]


Commands = Mapping[str, ShellCommand]

GROUPS: Mapping[str, str] = {
    "ask": "answer one prompt on stdout",
    "fork": "go on from an earlier turn in a new session",
    "sessions": "list, show, rename, mode, delete, search, export, import, tree",
    "cache": "what is remembered: stats, list, show, verify, pin, unpin, spill, drop, gc, clear",
    "lint": "what makes the beginning of a prompt change, and costs its reuse",
    "models": "list, show, probe, perplexity, download",
    "engine": "list, stop: the processes that hold models",
    "demo": "radix: what a prefix cache does, played step by step",
    "lens": "see what a cache is: turns, tokens, attention, as text, JSON or a picture",
    "bench": "measure prefill, resume, fork and decode on this machine",
    "serve-web": "the chat in a browser",
    "doctor": "check the installation, the directories and the stores",
    "paths": "where settings, conversations, segments and logs are",
    "config": "show, set, edit",
}
