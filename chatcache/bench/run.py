"""One run of `chatcache bench`: which parts are measured, in which order."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache.bench.chart import first_token_chart, first_token_svg
from chatcache.bench.llamacpp import LlamaCpp, why_not
from chatcache.bench.program import ProgramBench
from chatcache.bench.report import LLAMA_CPP, BenchResult, Say, as_json, as_table
from chatcache.bench.rows import MESSAGE_TOKENS, Bench, Curve, default_lengths
from chatcache.bench.setup import BenchModel, Models, load_models, note_rates
from chatcache.bench.sharing import SharingBench
from chatcache.errors import StorageError, UnavailableError, UsageError
from chatcache.formatting import plural


def run(options: argparse.Namespace) -> int:
    """Measure, tell people on stderr, and write one JSON object to stdout."""
    say = narrator(is_quiet=options.json)
    models = load_models(options.model, options.shape, options.dtype, options.threads)
    with scratch(options.directory) as directory:
        result = measure(models, directory, options, say)
    say("\n" + as_table(result))
    if result.curve:
        say("\n" + first_token_chart(result.curve))
        if options.svg:
            _write_svg(Path(options.svg), result)
            say(f"\nThe chart is in {options.svg}.")
    print(json.dumps(as_json(result)))
    return 0


def measure(models: Models, directory: Path, options: argparse.Namespace, say: Say) -> BenchResult:
    """Everything that the options ask for; `say` gets a line of progress per step."""
    loaded, tuned, tokens, runs = models.loaded, models.tuned, options.tokens, options.runs
    say(f"{loaded.name}: {loaded.num_parameters:,} parameters, {loaded.dtype}, {tokens:,} tokens")
    lengths = default_lengths(tokens) if options.lengths is None else options.lengths
    left_out: list[str] = []
    with contextlib.ExitStack() as stack:
        llama = _llama(options, models, directory, max(tokens, *lengths, 0), left_out, say)
        if llama is not None:
            stack.callback(llama.close)
        bench = Bench(loaded, tuned, directory, tokens, llama)
        stack.callback(bench.close)
        _run_core(bench, runs, say)
        say("forks, turns and short prefixes")
        sharing = SharingBench(bench, runs)
        sharing.run()
        curve = Curve(bench, max(1, runs // 2))
        points = []
        for length in sorted(set(lengths)):
            say(f"chart: {length:,} tokens")
            points.append(curve.point(length))
        limits = bench.label()
        rows = {**bench.rows, **sharing.rows}
        known = conditions(loaded, tokens, runs, has_llama=llama is not None)
        note_rates(models, bench.rows["cold"], tokens, bench.restores)
    figures = [*sharing.figures, *([bench.memory] if bench.memory else [])]
    result = BenchResult(known, limits, rows, bench.bytes_written, figures, points)
    result.left_out = left_out
    if not options.no_program:
        _run_program(models, directory, options, result, say)
    return result


def _run_core(bench: Bench, runs: int, say: Say) -> None:
    bench.prepare()
    for number in range(1, runs + 1):
        say(f"run {number} of {runs}: cold")
        bench.run_cold()
        bench.run_short()
        say(f"run {number} of {runs}: resume, fork, switch")
        bench.run_resumed()


def _run_program(
    models: Models, directory: Path, options: argparse.Namespace, result: BenchResult, say: Say
) -> None:
    """The rows of the whole program, after everything else: it starts processes of its own."""
    program = ProgramBench(models, directory / "program", options.tokens, options.threads)
    try:
        program.run(say)
    except UnavailableError as error:
        result.left_out.append(error.message)
    result.rows.update(program.rows)


def _llama(
    options: argparse.Namespace,
    models: Models,
    directory: Path,
    num_tokens: int,
    left_out: list[str],
    say: Say,
) -> LlamaCpp | None:
    """llama.cpp as a contender, if it can be one. Raises UsageError if it was asked for."""
    if options.against is not None and LLAMA_CPP not in options.against:
        return None
    model = models.loaded.model
    reason = why_not(model.config.get_text_config())
    if reason is None:
        say("llama.cpp: converting the weights")
        return LlamaCpp(model, directory, num_tokens, torch.get_num_threads())
    if options.against is not None:
        raise UsageError(f"bench: llama.cpp cannot run here: {reason}.", "Leave --against out.")
    left_out.append(f"llama.cpp is left out: {reason}.")
    return None


def narrator(*, is_quiet: bool) -> Say:
    """Prints a line to stderr, at once."""

    def say(text: str) -> None:
        if not is_quiet:
            print(text, file=sys.stderr, flush=True)

    return say


@contextlib.contextmanager
def scratch(parent: str | None) -> Iterator[Path]:
    """A directory on the disk to be measured, removed at the end. Raises StorageError."""
    try:
        made = tempfile.TemporaryDirectory(prefix="chatcache-bench-", dir=parent)
    except OSError as error:
        raise StorageError(
            f"Nothing can be written in {parent}: {error.strerror}.", "Choose another --directory."
        ) from error
    with made as directory:
        yield Path(directory)


def _write_svg(path: Path, result: BenchResult) -> None:
    known = result.conditions
    threads = plural(known["threads"], "thread")
    caption = f"{known['model']}, {known['dtype']}, {known['device']}, {threads}"
    try:
        path.write_text(first_token_svg(result.curve, caption), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", "Choose another file for --svg."
        ) from error


def conditions(loaded: BenchModel, tokens: int, runs: int, *, has_llama: bool) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "parameters": loaded.num_parameters,
        "dtype": loaded.dtype_name,
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "message_tokens": MESSAGE_TOKENS,
        "runs": runs,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "llama_cpp": importlib.metadata.version("llama-cpp-python") if has_llama else None,
    }


def cpu_name() -> str:
    """As the kernel calls it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
