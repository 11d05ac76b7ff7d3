"""One run of `chatcache bench`: which parts are measured, in which order."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from chatcache.bench.chart import first_token_chart, first_token_svg
from chatcache.bench.clock import is_gpu
from chatcache.bench.engine import EngineBench
from chatcache.bench.loading import LoadingBench
from chatcache.bench.program import ProgramBench
from chatcache.bench.report import (
    LLAMA_CPP,
    TRANSFORMERS,
    BenchResult,
    Say,
    as_json,
    as_table,
)
from chatcache.bench.rivals import Rivals, find_rivals
from chatcache.bench.rows import LONG, MESSAGE_TOKENS, Bench, Curve, default_lengths
from chatcache.bench.setup import Models, load_models, note_rates, weight_kinds
from chatcache.bench.sharing import SharingBench
from chatcache.bench.targets import target_lines, targets
from chatcache.errors import StorageError, UnavailableError
from chatcache.formatting import plural, size

_DRIVER = Path("/proc/driver/nvidia/version")


def run(options: argparse.Namespace) -> int:
    """Measure, tell people on stderr, and write one JSON object to stdout."""
    say = narrator(is_quiet=options.json)
    with scratch(options.directory) as directory:
        result = measure(load_models(options, directory), directory, options, say)
    say("\n" + as_table(result))
    if result.targets:
        say("\n" + "\n".join(target_lines(result.targets)))
    if result.curve:
        say("\n" + first_token_chart(result.curve))
        if options.svg:
            _write_svg(Path(options.svg), result)
            say(f"\nThe chart is in {options.svg}.")
    print(json.dumps(as_json(result)))
    return 0


def measure(models: Models, directory: Path, options: argparse.Namespace, say: Say) -> BenchResult:
    """Everything that the options ask for; `say` gets a line of progress per step."""
    tuned, tokens, runs = models.tuned, options.tokens, options.runs
    say(f"{tuned.name}: {tuned.num_parameters:,} parameters, {tuned.dtype}, {tokens:,} tokens")
    is_on_gpu, lengths = is_gpu(tuned.device), options.lengths
    if lengths is None:
        lengths = default_lengths(tokens, is_on_gpu=is_on_gpu)
    rivals = find_rivals(models, directory, options, say)
    with contextlib.ExitStack() as stack:
        llama = rivals.start_llama_cpp(max(tokens, *lengths, 0))
        if llama is not None:
            stack.callback(llama.close)
        bench = Bench(
            rivals.plain, tuned, directory, tokens, llama, has_compiled=rivals.has_compiled
        )
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
        note_rates(models, bench.rows["cold"], tokens, bench.restores)
    figures = [*sharing.figures, *([bench.memory] if bench.memory else [])]
    known = conditions(models, rivals, tokens, runs)
    result = BenchResult(known, limits, rows, bench.bytes_written, figures, points)
    result.left_out = list(rivals.left_out)
    if options.engine:
        _run_loading(models, directory, rivals, result, say)
    if not models.has_tokenizer:
        result.left_out.append("The rows of the program are left out: the file has no tokenizer.")
    else:
        _run_program(models, directory, options, result, say)
    if is_on_gpu:
        result.targets = targets(result)
    return result


def _run_core(bench: Bench, runs: int, say: Say) -> None:
    bench.prepare()
    for number in range(1, runs + 1):
        say(f"run {number} of {runs}: cold")
        bench.run_cold()
        bench.run_short()
        say(f"run {number} of {runs}: resume, fork, switch")
        bench.run_resumed()


def _run_loading(
    models: Models, directory: Path, rivals: Rivals, result: BenchResult, say: Say
) -> None:
    """In processes of their own, after everything that computes in this one."""
    say("loading")
    loading = LoadingBench(models, directory, torch.get_num_threads(), rivals.llama_file)
    loading.run(result.conditions["runs"])
    result.rows.update(loading.rows)
    result.figures += loading.figures()


def _run_program(
    models: Models, directory: Path, options: argparse.Namespace, result: BenchResult, say: Say
) -> None:
    """The rows of an engine and of the whole program, after everything else: they start processes
    of their own."""
    is_on_gpu, threads = is_gpu(models.tuned.device), options.threads
    if options.engine and (options.program or is_on_gpu):
        # A GPU reads in long chunks: the prompt is to have several.
        tokens = max(options.tokens, LONG) if is_on_gpu else options.tokens
        engine = EngineBench(models, directory / "engine", tokens, threads)
        try:
            engine.run(say)
        except UnavailableError as error:
            result.left_out.append(error.message)
        result.rows.update(engine.rows)
    if options.program:
        program = ProgramBench(models, directory / "program", options.tokens, threads)
        try:
            program.run(say)
        except UnavailableError as error:
            result.left_out.append(error.message)
        result.rows.update(program.rows)
        result.figures += program.figures


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


def conditions(models: Models, rivals: Rivals, tokens: int, runs: int) -> dict[str, Any]:
    tuned, has_llama = models.tuned, rivals.llama_file is not None
    return {
        "model": tuned.name,
        "parameters": tuned.num_parameters,
        "quantize": models.quantize,
        "weights": weight_kinds(tuned),
        "dtype": tuned.dtype_name,
        "kernels": tuned.kernels,
        "device": str(tuned.device),
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "message_tokens": MESSAGE_TOKENS,
        "runs": runs,
        "gpu": gpu_name(tuned.device),
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "llama_cpp": importlib.metadata.version("llama-cpp-python") if has_llama else None,
        "contenders": rivals.words,
        "ratio_of": LLAMA_CPP if models.is_packed and has_llama else TRANSFORMERS,
    }


def gpu_name(device: torch.device, driver: Path = _DRIVER) -> str | None:
    """The card, its memory, its driver and the CUDA of torch; None: it is none."""
    if device.type != "cuda":
        return None
    known = torch.cuda.get_device_properties(device)
    try:
        version = re.search(r"\s(\d+(?:\.\d+)+)\s", driver.read_text())
    except OSError:
        version = None
    words = [known.name, size(known.total_memory), f"CUDA {torch.version.cuda}"]
    return ", ".join(words + ([f"driver {version[1]}"] if version else []))


def cpu_name() -> str:
    """As the kernel calls it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
