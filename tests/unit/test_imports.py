"""What a command may load: listing and forking must not pay for a model or a UI toolkit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "textual", "rich", "numpy", "huggingface_hub", "httpx2")
PROBE = """
import json, sys
from chatcache import cli
code = cli.main(sys.argv[1:])
sys.stdout.flush()
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "loaded": loaded}), file=sys.stderr)
"""


def run_probe(*words: str) -> tuple[int, list[str]]:
    """The exit code of a command and the heavy packages that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stderr.strip().splitlines()[-1])
    return report["code"], [name for name in HEAVY if name in report["loaded"]]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["ask", "--help"], 0),
        (["paths"], 0),
        (["config", "show"], 0),
        (["sessions", "list"], 0),
        (["sessions", "list", "--json"], 0),
        (["sessions", "search", "word"], 0),
        (["cache", "stats"], 0),
        (["cache", "list"], 0),
        (["lint"], 0),
        (["cache", "verify"], 0),
        (["cache", "clear"], 0),
        (["fork", "nowhere"], 3),
        (["no-such-command", "at-all"], 2),
    ],
)
def test_cheap_commands_load_nothing_heavy(words: list[str], code: int) -> None:
    assert run_probe(*words) == (code, [])


def test_the_front_end_of_a_turn_loads_no_model_library() -> None:
    program = (
        "import sys, chatcache.chat.service, chatcache.commands.ask, chatcache.compose,"
        " chatcache.backends.local.engine.client;"
        " print([n for n in ('torch', 'transformers', 'textual') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
