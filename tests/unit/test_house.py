"""The house rules, checked by the tools that know them: one test command checks everything."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from chatcache.assets import pocket_dir

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

in_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="only a checkout has the project's files"
)
pytestmark = in_checkout


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "ruff", "check", "."],
        [sys.executable, "-m", "ruff", "format", "--check", "."],
        [sys.executable, "-m", "mypy"],
        [str(BIN / "lint-imports"), "--no-logo"],
    ],
    ids=["ruff", "format", "mypy", "import-linter"],
)
def test_tools_have_nothing_to_say(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_and_functions_stay_small() -> None:
    over = []
    for path in sorted((ROOT / "chatcache").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT)
        if source.count("\n") > MAX_FILE_LINES:
            over.append(f"{where}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= MAX_FUNCTION_LINES:
                over.append(f"{where}:{node.lineno} {node.name}: {length} lines")
    assert over == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "chatcache").rglob("*.py")
        if (source := path.read_text(encoding="utf-8")).strip()
        and not ast.get_docstring(ast.parse(source))
    ]
    assert silent == []


def test_nothing_broad_passes_in_silence() -> None:
    silent = []
    for path in sorted((ROOT / "chatcache").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_broad = isinstance(node, ast.ExceptHandler) and (
                node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
            )
            if is_broad and all(isinstance(line, ast.Pass) for line in node.body):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


def test_no_work_is_put_off_in_the_code() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "chatcache").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks)
    ]
    assert found == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    command = ci.strip().splitlines()[-1]
    assert command.endswith("-m pytest")
    assert command in readme


def test_the_builtin_model_is_found_in_a_checkout() -> None:
    assert pocket_dir() == ROOT / "assets" / "pocket"
    assert (pocket_dir() / "model.safetensors").is_file()


def test_a_wheel_has_the_builtin_model_without_its_recipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    assert not [name for name in names if "recipe" in name]
    assert not [name for name in names if name.startswith(("tests/", "assets/"))]
    program = "from chatcache.assets import pocket_dir; print(pocket_dir())"
    found = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.strip() == str(installed / "chatcache" / "pocket"), found.stderr
    assert (installed / "chatcache" / "pocket" / "model.safetensors").is_file()


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
