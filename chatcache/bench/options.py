"""The options of `chatcache bench`, and its shapes: configurations of real models, as published."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from chatcache.bench.report import COMPILED, LLAMA_CPP, TRANSFORMERS
from chatcache.errors import UsageError

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "qwen3",
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 65_536,
        "tie_word_embeddings": True,
    },
}


CONTENDERS = (TRANSFORMERS, COMPILED, LLAMA_CPP)
_SUMMARY = """\
Measure what a turn costs on this machine, beside what the machine could do at best.
`chatcache bench growth` measures what the n-th turn of a long chat costs instead.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`against` is a list; None: whatever is installed. Raises UsageError."""
    parser = _Parser(prog="chatcache bench", description=_SUMMARY, allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=("growth",), help=argparse.SUPPRESS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="M", help="a model that is on this machine, FILE.gguf too")
    what.add_argument("--shape", choices=sorted(SHAPES), help="random weights so (qwen3-0.6b)")
    parser.add_argument(
        "--quantize",
        choices=("4bit", "8bit"),
        help="measure the weights packed; llama.cpp gets Q4_K_M or Q8_0 of the same",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what computes")
    for name, default, words in (
        ("tokens", 4096, "length of the history"),
        ("runs", 5, "repetitions of each row"),
        ("threads", None, "CPU threads (default: torch's choice)"),
        ("turns", 200, "growth: turns of the chat"),
        ("sessions", 10_000, "growth: conversations to list and search"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=_count, default=default, help=words)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="auto: bfloat16 for a shape, what a chat would choose for a model",
    )
    parser.add_argument(
        "--against",
        type=_names,
        metavar="NAMES",
        help="transformers, compiled (its static cache and compiled step; by itself on a GPU), "
        "llama.cpp (default: those that can run here)",
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        metavar="N,N",
        help="histories of the chart (256, 1024, 2048 and --tokens; 0: no chart)",
    )
    parser.add_argument("--svg", metavar="FILE", help="write the chart as a picture too")
    for name, default, words in (
        ("program", None, "the rows of the whole program (by itself on a CPU)"),
        ("engine", True, "those of loading and of an engine; of a shape it writes the weights"),
    ):
        action = argparse.BooleanOptionalAction
        parser.add_argument(f"--{name}", action=action, default=default, help=words)
    parser.add_argument("--directory", metavar="D", help="disk to measure (default: temporary)")
    parser.add_argument("--json", action="store_true", help="no table and no progress")
    options = parser.parse_args(arguments)
    if options.program is None:
        options.program = options.device == "cpu"
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", "See `chatcache bench --help`.")


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _lengths(text: str) -> tuple[int, ...]:
    return () if text.strip() == "0" else tuple(_count(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no contender is called {unknown[0]!r}; there are {', '.join(CONTENDERS)}"
        )
    return names
