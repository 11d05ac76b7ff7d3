"""`chatcache bench`: what a turn costs here, against plain transformers on the same work.

All contenders run in turn (A B A B ...) in this one process, on the same prompt ids, weights,
dtype and threads; medians are shown with their extremes, and beside them the physical limit: the
bytes that must move, over the memory or disk bandwidth measured in the same run. The last line on
stdout is one JSON object.

A shape is a real model's exact configuration with random weights: speed depends on the shape and
not on the weights, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatcache.bench.shapes import SHAPES
from chatcache.errors import UsageError


def main(arguments: Sequence[str]) -> int:
    """Run the bench; returns the exit code. Raises UsageError, ModelLoadError."""
    options = _parse(arguments)
    from chatcache.bench.report import as_json, as_table
    from chatcache.bench.rows import measure
    from chatcache.bench.setup import load_named, load_shape, tuned_copy

    say = _narrator(quiet=options.json)
    name, load = (options.model, load_named) if options.model else (options.shape, load_shape)
    loaded = load(name, options.dtype, options.threads)
    tuned = tuned_copy(load(name, options.dtype, options.threads))
    with tempfile.TemporaryDirectory(prefix="chatcache-bench-", dir=options.directory) as directory:
        result = measure(loaded, tuned, Path(directory), options.tokens, options.runs, say)
    say(as_table(result))
    print(json.dumps(as_json(result)))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="chatcache bench", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", metavar="M", help="a model that is on this machine")
    what.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--tokens", type=_count, default=4096, help="length of the history")
    parser.add_argument("--runs", type=_count, default=5, help="repetitions of each row")
    parser.add_argument("--threads", type=_count, help="CPU threads (default: torch's choice)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--directory", metavar="D", help="disk to measure (default: temporary)")
    parser.add_argument(
        "--against", default="transformers", help="contenders: transformers is always among them"
    )
    parser.add_argument("--json", action="store_true", help="no table and no progress")
    options = parser.parse_args(arguments)
    unknown = set(options.against.split(",")) - {"transformers"}
    if unknown:
        raise UsageError(
            f"No contender is called {', '.join(sorted(unknown))!r}.", "Choose from: transformers."
        )
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"bench: {message}.", "See chatcache bench --help.")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _narrator(*, quiet: bool) -> Any:
    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    return say
