"""The options of commands that choose how the next token is chosen, and their settings."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from chatcache.commands.parser import Parser, number_option
from chatcache.config import SamplingSection


def add_sampling(parser: Parser) -> None:
    """The options that choose the next token; they have the limits of the settings."""
    group = parser.add_argument_group("sampling")
    checks = {
        name: field.metadata["check"]
        for name, field in SamplingSection.__dataclass_fields__.items()
    }
    for name, metavar, kind, help_text in (
        ("max_new_tokens", "N", int, "the longest answer"),
        ("temperature", "T", float, "0 is greedy"),
        ("top_p", "P", float, "choose among the most likely tokens with this share"),
        ("top_k", "K", int, "choose among this many tokens; 0 is all"),
        ("min_p", "P", float, "leave out tokens below this share of the most likely one"),
        ("repetition_penalty", "R", float, "above 1, repeating becomes less likely"),
        ("seed", "N", int, "the same seed gives the same answer"),
    ):
        group.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=metavar,
            type=number_option(checks[name], kind),
            help=help_text,
        )
    group.add_argument(
        "--think",
        dest="think",
        action="store_true",
        default=None,
        help="let a model that can reason do so first",
    )
    group.add_argument("--no-think", dest="think", action="store_false", help="answer at once")


def sampling_options(arguments: Namespace) -> dict[str, Any]:
    """The sampling options of a command, by the names of their settings."""
    return {
        f"sampling.{name}": getattr(arguments, name)
        for name in SamplingSection.__dataclass_fields__
    }
