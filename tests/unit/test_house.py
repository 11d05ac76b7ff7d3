"""The house rules, checked by the tools that know them: one test command checks everything."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from chatcache.assets import pocket_dir

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# What the rules below are not kept by yet. These lists may only become shorter.
KNOWN_DOUBLE_CLASSES: set[str] = set()
KNOWN_ONE_LOOPS: set[str] = set()

in_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="only a checkout has the project's files"
)
pytestmark = in_checkout


@pytest.mark.slow
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


def test_the_checks_of_every_change_are_the_test_command_of_the_readme() -> None:
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert f"```\n{last}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


@cache
def package() -> dict[str, ast.Module]:
    """The syntax trees of the package's modules, by dotted name."""
    trees = {}
    for path in sorted((ROOT / "chatcache").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        trees[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    """Each node of these kinds, with the module it is in."""
    for name, tree in package().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield name, node


def test_files_and_functions_stay_small() -> None:
    over = []
    for path in sorted((ROOT / "chatcache").rglob("*.py")):
        num_lines = path.read_text(encoding="utf-8").count("\n")
        if num_lines > MAX_FILE_LINES:
            over.append(f"{path.relative_to(ROOT)}: {num_lines} lines")
    for module, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        length = node.end_lineno - node.lineno + 1
        if length >= MAX_FUNCTION_LINES:
            over.append(f"{module}:{node.lineno} {node.name}: {length} lines")
    assert over == []


def test_every_module_says_what_it_owns() -> None:
    silent = [name for name, tree in package().items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_nothing_broad_passes_in_silence() -> None:
    silent = []
    for module, node in nodes(ast.ExceptHandler):
        is_broad = node.type is None or getattr(node.type, "id", "") in (
            "Exception",
            "BaseException",
        )
        if is_broad and all(isinstance(line, ast.Pass) for line in node.body):
            silent.append(f"{module}:{node.lineno}")
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


def imported_modules(tree: ast.Module) -> set[str]:
    """The modules of the package that a module names in an import, for type checking or not."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import thing` does not.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & package().keys() or {node.module}
    return names & package().keys()


def test_no_modules_import_each_other() -> None:
    """Neither at once nor by way of others."""
    imports = {name: imported_modules(tree) for name, tree in package().items()}

    def reached_from(name: str) -> set[str]:
        found: set[str] = set()
        to_visit = [name]
        while to_visit:
            new = imports[to_visit.pop()] - found
            found |= new
            to_visit += new
        return found

    assert [name for name in imports if name in reached_from(name)] == []


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, node in nodes(ast.ClassDef):
        places[node.name].append(module)
    double = {name: where for name, where in places.items() if len(where) > 1}
    assert double.keys() <= KNOWN_DOUBLE_CLASSES, double


def test_what_a_loop_goes_over_has_a_name() -> None:
    """`for one in rows` does not say what is looked at."""
    found = {
        module
        for module, node in nodes(ast.For, ast.AsyncFor, ast.comprehension)
        for target in ast.walk(node.target)
        if isinstance(target, ast.Name) and target.id == "one"
    }
    assert found <= KNOWN_ONE_LOOPS


def test_ci_runs_the_test_command_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    command = ci.strip().splitlines()[-1]
    assert command.endswith("-m pytest")
    assert command in readme


def test_the_builtin_model_is_found_in_a_checkout() -> None:
    assert pocket_dir() == ROOT / "assets" / "pocket"
    assert (pocket_dir() / "model.safetensors").is_file()


@pytest.mark.slow
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
