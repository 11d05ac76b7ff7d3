"""What a cold start imports, in processes of its own: the real libraries, the built-in model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.model.loader import load_model
from tests.models import build_model_dir

pytestmark = pytest.mark.slow

# Each takes a tenth of a second or more to import, and no turn needs one.
UNNEEDED = (
    "sympy",
    "torch._dynamo.utils",
    "torch._refs",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
)
READY = """
import json, sys
from pathlib import Path
from chatcache.backends.local.engine.process import build_runner
from chatcache.backends.local.engine.settings import EngineSettings

model, home = sys.argv[1], Path(sys.argv[2])
settings = EngineSettings(model, home / "cache", home / "log")
runner = build_runner(settings, lambda event: None)
"""
UNNEEDED_THERE = """
print(json.dumps([name for name in sys.argv[3:] if name in sys.modules]))
"""
NAMESPACE = """
print(json.dumps(dict(runner.info.namespace_fields)))
"""
REST = """
import importlib
import torch, transformers
from chatcache.backends.local.model.libraries import import_rest
assert import_rest() and not import_rest()
again = importlib.import_module("transformers")
assert transformers.AutoModelForCausalLM is again.AutoModelForCausalLM
assert transformers.models.qwen3.Qwen3ForCausalLM is again.Qwen3ForCausalLM
assert isinstance(runner.loaded.model, again.PreTrainedModel)
assert torch._dynamo.config is importlib.import_module("torch._dynamo.config")
assert torch._dynamo.disable(str.upper) is not str.upper
"""
# Each in a process that has imported what an engine has, and nothing else.
COMPUTE = """
import os, sys, traceback
from chatcache.backends.local.model.libraries import import_libraries
import_libraries()
import torch
from tests.equivalence import families, stateful
torch.set_num_threads(1)

def compute(family):
    make = stateful.stateful_model if family in stateful.OVERRIDES else families.family_model
    model, ids = make(family), torch.arange(2, 8)[None]
    name = "cache_params" if "mamba" in family else "past_key_values"
    with torch.inference_mode():
        first = model(input_ids=ids, use_cache=True)
        model(input_ids=ids[:, :1], use_cache=True, **{name: first[name]})

for family in sys.argv[1:]:
    if os.fork() == 0:
        try:
            compute(family)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        print(family)
"""


def run(program: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_engine_is_ready_without_what_no_turn_needs(tmp_path: Path) -> None:
    assert json.loads(run(READY + UNNEEDED_THERE, "builtin", str(tmp_path), *UNNEEDED)) == []


def test_the_rest_is_there_when_somebody_asks_for_it(tmp_path: Path) -> None:
    run(READY + REST, "builtin", str(tmp_path))


def test_libraries_that_have_changed_inside_are_imported_whole(tmp_path: Path) -> None:
    changed = """
from chatcache.backends.local.model import libraries
libraries._NATIVE = libraries._BESIDE = libraries._LIBRARIES = ("transformers.nowhere",)
"""
    whole = """
assert libraries._deferral.pending == (), libraries._deferral.pending
assert "torch._meta_registrations" in sys.modules
"""
    run(changed + READY + whole, "builtin", str(tmp_path))


def test_another_torch_is_imported_whole(tmp_path: Path) -> None:
    another = """
from chatcache.backends.local.model import libraries
libraries._KNOWN_TORCH = "0."
"""
    whole = """
assert not any(name.startswith("torch") for name in libraries._deferral.pending)
assert "torch._meta_registrations" in sys.modules
"""
    run(another + READY + whole, "builtin", str(tmp_path))


def test_what_is_imported_while_torch_is_linked_waits_for_no_library() -> None:
    program = """
import importlib, sys
from chatcache.backends.local.model import libraries
for name in libraries._NATIVE:
    importlib.import_module(name)
before = set(sys.modules)
for name in libraries._BESIDE:
    importlib.import_module(name)
new = [sys.modules[name] for name in set(sys.modules) - before]
assert [m.__name__ for m in new if str(getattr(m, "__file__", "")).endswith(".so")] == []
assert "torch" not in sys.modules
"""
    run(program)


def test_families_compute_with_what_an_engine_imports() -> None:
    families = ["falcon_mamba", "jamba", "lfm2", "mamba2", "qwen3_next"]
    assert run(COMPUTE, *families, "deepseek_v3", "gpt_oss", "llama4_text") == ""


@pytest.mark.parametrize("family", ["llama", "apertus"])
def test_a_model_is_the_same_as_with_whole_libraries(family: str, tmp_path: Path) -> None:
    """torch makes an apertus with operators that have to be imported first."""
    path = build_model_dir(tmp_path / family, family)
    fields: dict[str, Any] = json.loads(run(READY + NAMESPACE, str(path), str(tmp_path)))
    assert fields == load_model(str(path)).namespace_fields()
