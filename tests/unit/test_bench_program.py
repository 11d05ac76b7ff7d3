"""The rows of the whole program, and the growth of a long chat, on a tiny shape."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from chatcache.bench import main, program
from chatcache.bench.options import parse
from chatcache.bench.processes import Terminal, Typist
from chatcache.bench.program import ProgramBench
from chatcache.bench.setup import load_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a pty"),
]

SECONDS = 20.0
# Shows the line anew after each key, in colours and with the cursor moved, as a screen does.
LINE_EDITOR = """
import sys, tty
tty.setraw(0)
print("\\x1b[1;31mready\\x1b[0m to type", end="", flush=True)
line = ""
while (key := sys.stdin.read(1)) != "\\x11":
    line = "" if key == "\\x15" else line + key
    print(f"\\x1b[2;1H\\x1b[7m{line[:1]}\\x1b[0m{line[1:]}\\x1b[K", end="", flush=True)
"""


def test_a_key_is_seen_when_its_letter_is_on_the_screen() -> None:
    terminal = Terminal([sys.executable, "-c", LINE_EDITOR], dict(os.environ))
    try:
        assert terminal.until(lambda words: "ready to type" in words, SECONDS) is not None
        typist = Typist(terminal, pause=0.0, timeout=SECONDS)
        assert all(0 < typist.key() < SECONDS for _ in range(60))
        assert terminal.has_shown(lambda words: words.startswith("ready"))
        assert terminal.until(lambda words: "never shown" in words, 0) is None
    finally:
        terminal.close()


def test_every_row_of_the_program_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_STARTS", 1)
    options = parse(["--shape", "tiny", "--dtype", "float32", "--threads", "1"])
    bench = ProgramBench(load_models(options, tmp_path), tmp_path / "program", 1200, 1)
    bench.run(lambda line: None)
    measured = {name for name, row in bench.rows.items() if row.samples}
    # A tiny model may be loaded, or have read, before the first key is typed.
    assert measured >= {"help", "paint", "resident", "not_resident"}
    assert [figure.name for figure in bench.figures] == ["engine_memory"]
    assert set(bench.rows) - measured <= {"echo_loading", "echo_prefill"}


def test_what_a_turn_writes_does_not_grow_with_the_chat(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["growth", "--turns", "4", "--sessions", "7", "--no-program", "--threads", "1"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    growth = json.loads(out)["growth"]
    turns = growth["turns"]
    assert [turn["turn"] for turn in turns] == [1, 2, 3, 4]
    assert turns[-1]["prompt_tokens"] > turns[0]["prompt_tokens"]
    per_token = {turn["bytes_written"] // turn["new_tokens"] for turn in turns}
    assert max(per_token) - min(per_token) <= max(per_token) // 50
    assert growth["sessions"]["count"] == 7
    assert growth["sessions"]["search_rare_ms"] > 0
    assert "A chat of 4 turns" in err
    assert "7 conversations" in err
