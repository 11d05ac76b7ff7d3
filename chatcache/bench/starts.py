"""From the command to the first word of a chat that goes on: what a person waits for.

Everything is a process of its own. The chat has a history of a given length. chatcache goes on with
it by `ask`: on an engine that stays, and with `--no-engine`. Plain transformers loads it in a
script and reads the whole history again. The script is timed until it has printed its first token;
`ask` until it has ended with an answer of one token, for what random weights write may be no text.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from chatcache.backends.local.model.resolve import resolve_model
from chatcache.bench.memory import ProcessMemory, process_memory
from chatcache.bench.processes import chat_command
from chatcache.bench.report import CHATCACHE, TRANSFORMERS, Row, Say
from chatcache.errors import UnavailableError

RUNS = 3
_SECONDS = 600.0
_QUESTION = "Go on."
_SESSION = "history"
_TRANSFORMERS = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, dtype, threads = sys.argv[1:4]
if threads != "0":
    torch.set_num_threads(int(threads))
tokenizer = AutoTokenizer.from_pretrained(model_name, local_files_only=True)
model = AutoModelForCausalLM.from_pretrained(model_name, local_files_only=True, dtype=dtype)
messages = [
    {"role": "user", "content": sys.stdin.read()},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Go on."},
]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
with torch.inference_mode():
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
print("word", tokenizer.decode(answer[0, -1:]), flush=True)
"""


class StartBench:
    """Rows of a model in a directory. `prompt` is the history, one long message."""

    def __init__(
        self,
        model: str,
        prompt: str,
        environment: Mapping[str, str],
        *,
        dtype: str,
        quantize: str | None,
        threads: int | None,
    ) -> None:
        self._model, self._prompt = model, prompt
        self._environment = {**environment, "CHATCACHE_KEEP_ALIVE": "10m"}
        self._dtype, self._threads, self._quantize = dtype, threads, quantize
        self.rows = {
            name: Row(name, title, "command", bound_by, against)
            for name, title, bound_by, against in (
                ("resident", "engine resident", "the turn itself", "not_resident"),
                ("not_resident", "engine not resident", "imports, weights", "not_resident"),
            )
        }
        self.memory: ProcessMemory | None = None  # of the engine, after one short turn

    def run(self, say: Say) -> None:
        """Raises UnavailableError where a command fails."""
        say("from the command to the first word")
        self._seconds(self._ask("--new", _QUESTION))
        self.memory = self._engine_memory()
        self._seconds(self._ask("--session", _SESSION, "-"), self._prompt)
        for _ in range(RUNS):
            for row, options in (("not_resident", ["--no-engine"]), ("resident", [])):
                words = self._ask("--session", _SESSION, *options, _QUESTION)
                self.rows[row].add(CHATCACHE, self._seconds(words))
            seconds = self._transformers()
            if seconds is not None:
                self.rows["not_resident"].add(TRANSFORMERS, seconds)

    def close(self) -> None:
        """End the engine that the commands have left behind."""
        subprocess.run(
            chat_command("engine", "stop", "--all"),
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    def _engine_memory(self) -> ProcessMemory | None:
        """Of the engine that stays; None where the system does not tell."""
        told = subprocess.run(
            chat_command("engine", "list", "--json"),
            env=self._environment,
            capture_output=True,
            check=True,
        )
        engines = json.loads(told.stdout)["engines"]
        return process_memory(engines[0]["pid"]) if engines else None

    def _ask(self, *words: str) -> list[str]:
        options = ["--model", self._model, "--dtype", self._dtype, "--temperature", "0"]
        if self._quantize is not None:
            options += ["--quantize", self._quantize]
        return chat_command("ask", *options, "--max-new-tokens", "1", "--quiet", *words)

    def _transformers(self) -> float | None:
        """None for a GGUF file, which its documentation only unpacks."""
        found = resolve_model(self._model, is_offline=True)
        if isinstance(found, Path) and found.is_file():
            return None
        where = [str(found), self._dtype, str(self._threads or 0)]
        command = [sys.executable, "-c", _TRANSFORMERS, *where]
        return self._seconds(command, self._prompt, is_printing=True)

    def _seconds(
        self, command: Sequence[str], stdin: str = "", *, is_printing: bool = False
    ) -> float:
        """Until the command has ended, or has printed something. Raises UnavailableError."""
        began = time.perf_counter()
        with subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(stdin.encode())
            process.stdin.close()
            if is_printing:
                process.stdout.read(1)
                seconds = time.perf_counter() - began
            process.stdout.read()
            told = process.stderr.read().decode(errors="replace") if process.stderr else ""
            code = process.wait(_SECONDS)
            if not is_printing:
                seconds = time.perf_counter() - began
        if code != 0:
            name = Path(command[0]).name
            last = (told.strip().splitlines() or ["it said nothing"])[-1]
            raise UnavailableError(f"{name} failed in the bench: {last}", "Run it by hand.")
        return seconds
