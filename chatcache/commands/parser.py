"""The option parser of all commands: argparse with errors as sentences, and the shared options.

Owns the options that many commands have and how they become settings. Knows no command.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from chatcache.checks import OWN_ENGINE, Check
from chatcache.config import Settings, load_settings
from chatcache.configfile import write_default
from chatcache.errors import NotFoundError, UsageError, did_you_mean
from chatcache.sections import DEVICES, DTYPES, QUANTIZE, ModelSection, SamplingSection

# The shared options that have a value, and the attribute that holds it.
VALUE_OPTIONS = {
    "--model": "model",
    "--adapter": "adapter",
    "--device": "device",
    "--dtype": "dtype",
    "--quantize": "quantize",
    "--max-context": "max_context",
    "--data-dir": "data_dir",
    "--cache-dir": "cache_dir",
    "--config": "config_file",
}
SETTING_OF_OPTION = {
    "data_dir": "paths.data_dir",
    "cache_dir": "paths.cache_dir",
    "config_file": "paths.config_file",
    "model": "model.default",
    "adapter": "model.adapter",
    "device": "model.device",
    "dtype": "model.dtype",
    "quantize": "model.quantize",
    "max_context": "model.max_context",
    "fit_check": "model.fit_check",
    "offline": "model.offline",
    "keep_alive": "engine.keep_alive",
}
MODEL_HELP = (
    "builtin, smollm2, a directory, a GGUF file, ollama:NAME[:TAG], a Hugging Face id"
    " (ORG/REPO[:QUANT]), or PROFILE:NAME of a server; NAME:4bit and NAME:8bit: NAME in so few"
    " bits"
)


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of leaving the program; options are never abbreviated."""

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", f"See `{self.prog} --help`.")

    def parse(self, words: Sequence[str]) -> Namespace:
        """The options of a command. Raises UsageError that names the nearest option."""
        arguments, unknown = self.parse_known_args(list(words))
        options = [word for word in unknown if word.startswith("-") and word != "-"]
        if options:
            option = options[0].partition("=")[0]
            raise UsageError(
                f"{self.prog} has no option {option!r}.",
                did_you_mean(option, self._option_string_actions) or f"See `{self.prog} --help`.",
            )
        if unknown:
            raise UsageError(
                f"{self.prog} does not know what to do with {unknown[0]!r}.",
                "A text with spaces goes in quotes.",
            )
        return arguments

    def add_places(self) -> None:
        group = self.add_argument_group("places")
        group.add_argument("--data-dir", metavar="D", help="where conversations are")
        group.add_argument("--cache-dir", metavar="D", help="where segments are")
        group.add_argument(
            "--config", metavar="FILE", dest="config_file", help="the file with the settings"
        )

    def add_engine(self) -> None:
        group = self.add_argument_group("model")
        group.add_argument(
            "--model",
            metavar="M",
            help=MODEL_HELP,
        )
        group.add_argument("--adapter", metavar="DIR", help="a PEFT adapter to put on the model")
        group.add_argument(
            "--no-engine",
            dest="keep_alive",
            action="store_const",
            const=OWN_ENGINE,
            help="share no engine with other chats, and leave none behind",
        )
        self.add_device()

    def add_device(self) -> None:
        group = self.add_argument_group("device")
        group.add_argument("--device", choices=DEVICES, help="default: the fastest that is there")
        group.add_argument("--dtype", choices=DTYPES, help="default: what suits model and device")
        words = "weights in 4 or 8 bits, made once and kept: less memory, approximate"
        group.add_argument("--quantize", choices=QUANTIZE, help=words)
        check = ModelSection.__dataclass_fields__["max_context"].metadata["check"]
        convert = number_option(check, int)
        words = "tokens; default: as long as the model was made for"
        group.add_argument("--max-context", metavar="N", type=convert, help=words)
        group.add_argument(
            "--no-fit-check",
            dest="fit_check",
            action="store_false",
            default=None,
            help="load a model even if the memory has no room for it",
        )
        group.add_argument(
            "--offline", action="store_true", default=None, help="never ask the network"
        )

    def add_sampling(self) -> None:
        """The options that choose the next token; they have the limits of the settings."""
        group = self.add_argument_group("sampling")
        for name, metavar, kind, help_text in (
            ("max_new_tokens", "N", int, "the longest answer"),
            ("temperature", "T", float, "0 is greedy"),
            ("top_p", "P", float, "choose among the most likely tokens with this share"),
            ("top_k", "K", int, "choose among this many tokens; 0 is all"),
            ("min_p", "P", float, "leave out tokens below this share of the most likely one"),
            ("repetition_penalty", "R", float, "above 1, repeating becomes less likely"),
            ("seed", "N", int, "the same seed gives the same answer"),
        ):
            check = SamplingSection.__dataclass_fields__[name].metadata["check"]
            option, convert = f"--{name.replace('_', '-')}", number_option(check, kind)
            group.add_argument(option, metavar=metavar, type=convert, help=help_text)
        words = "let a model that can reason do so first"
        group.add_argument("--think", action="store_true", default=None, help=words)
        group.add_argument("--no-think", dest="think", action="store_false", help="answer at once")

    def add_session(self) -> None:
        self.add_argument("session", metavar="SESSION", help="name, id, or beginning of the id")

    def add_json(self) -> None:
        self.add_argument("--json", action="store_true", help="print one JSON object")

    def add_quiet(self) -> None:
        self.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")


def number_option(check: Check, kind: type[int] | type[float]) -> Any:
    """The `type` of an option that has the same limits as a setting."""

    def convert(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            noun = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {noun}, not {word!r}") from None
        try:
            return check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def sampling_options(arguments: Namespace) -> dict[str, Any]:
    """The sampling options of a command, by the names of their settings."""
    return {
        f"sampling.{name}": getattr(arguments, name)
        for name in SamplingSection.__dataclass_fields__
    }


def options_of(arguments: Namespace) -> dict[str, Any]:
    """The shared options of a command, by the names of their settings."""
    return {name: getattr(arguments, option, None) for option, name in SETTING_OF_OPTION.items()}


def settings_of(arguments: Namespace, more: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force for a command; the first command writes the commented config.toml.

    `more`: options of this command alone, by the names of their settings.
    """
    settings = load_settings({**options_of(arguments), **(more or {})})
    config_file = settings.paths.config_file
    if settings.origins["paths.config_file"] == "option" and not config_file.exists():
        raise NotFoundError(
            f"There is no settings file {config_file}.",
            "Check --config; `chatcache config edit --config FILE` makes one.",
        )
    write_default(config_file)
    return settings
