"""Writes config.toml: the commented file of the first run, and single settings afterwards.

The comments are the docstrings below the settings in `sections.py`, so they cannot differ from it.
Knows nothing of what the settings do.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from chatcache import personas, remotes, sections
from chatcache.atomic_write import PRIVATE, write_atomically
from chatcache.checks import key_names
from chatcache.config import KEYS_DOC, KEYS_SECTION, find_key, parse_config
from chatcache.errors import StorageError, UsageError
from chatcache.os_failures import advice, reason
from chatcache.sections import SECTIONS

HEADER = """\
# Settings of chatcache. Everything here is optional; a line that starts with # is the default.
# An option of the command line and the environment go before this file.
"""


def documented_keys(section: type) -> Iterator[tuple[str, str]]:
    """The names and docstrings of a section's settings, in order."""
    module = ast.parse(inspect.getsource(sections))
    (node,) = (
        node
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            doc = following.value if isinstance(following, ast.Expr) else None
            if not isinstance(doc, ast.Constant) or not isinstance(doc.value, str):
                raise TypeError(f"{section.__name__}.{statement.target.id} has no docstring")
            yield statement.target.id, inspect.cleandoc(doc.value)


def default_text() -> str:
    """The commented config.toml: every section, every setting with its default as a comment."""
    parts = [HEADER]
    for section_name, section in SECTIONS.items():
        parts.append(f"\n[{section_name}]\n# {section.__doc__}\n")
        by_name = {key.name: key for key in fields(section)}
        for name, doc in documented_keys(section):
            key = by_name[name]
            is_example = key.default is None
            value = toml_value(key.metadata["example"] if is_example else key.default)
            note = "   # an example; by default not set" if is_example else ""
            comment = "\n".join(f"# {line}" for line in doc.splitlines())
            parts.append(f"\n{comment}\n# {name} = {value}{note}\n")
    parts.append(f"\n[{KEYS_SECTION}]\n# {KEYS_DOC}\n")
    parts += [remotes.EXAMPLE, personas.EXAMPLE]
    return "".join(parts)


def write_default(path: Path) -> bool:
    """Write the commented file if there is none. False when it was there or cannot be written.

    A read-only home is no error: the defaults are used.
    """
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, default_text().encode())
    except OSError:
        return False
    return True


def set_value(path: Path, name: str, word: str) -> Any:
    """Set "section.key" to a value given as a word; comments and order stay. Returns the value.

    The word is TOML (`4`, `true`, `"2 GB"`) or plain text (`2 GB`, `nord`). Raises UsageError for
    an unknown setting or a wrong value; the file is then as it was.
    """
    section_name, _, key_name = name.partition(".")
    if not key_name:
        raise UsageError(
            f"{name!r} is not the name of a setting.", "Settings are called SECTION.KEY."
        )
    if section_name == remotes.SECTION:
        return _set_remote(path, key_name.split("."), word)
    value = _parsed_value(section_name, key_name, word)
    content = _read_or_default(path)
    parse_config(content, path)
    changed = _uncommented(content, section_name, key_name, toml_value(value))
    if changed is None:
        changed = _assigned(content, section_name, key_name, value)
    _replace_file(path, changed)
    return value


def _set_remote(path: Path, names: list[str], word: str) -> Any:
    """Set NAME.KEY of a profile. The file is checked as a whole before it is replaced."""
    import tomlkit

    remotes.check_path(names)
    literal = _as_literal(word)
    is_text = isinstance(literal, str | None) or names[-1] in remotes.TEXT_KEYS
    value = word if is_text and not isinstance(literal, str) else literal
    content = _read_or_default(path)
    parse_config(content, path)
    document = tomlkit.parse(content)
    if remotes.SECTION not in document:
        document[remotes.SECTION] = tomlkit.table(is_super_table=True)
    *tables, key = names
    table: Any = document[remotes.SECTION]
    for depth, name in enumerate(tables):
        if name not in table:
            table[name] = tomlkit.inline_table() if depth else tomlkit.table()
        table = table[name]
    table[key] = value
    _replace_file(path, tomlkit.dumps(document).rstrip("\n") + "\n")
    return value


def toml_value(value: Any) -> str:
    """A setting as TOML writes it."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def _parsed_value(section_name: str, key_name: str, word: str) -> Any:
    if section_name == KEYS_SECTION:
        return key_names(word)
    key = find_key(section_name, key_name)
    candidates = [candidate for candidate in (_as_literal(word), word) if candidate is not None]
    problems = []
    for candidate in candidates:
        try:
            return key.metadata["check"](candidate)
        except ValueError as error:
            problems.append(str(error))
    raise UsageError(f"{section_name}.{key_name} {problems[0]}.", "See `chatcache config show`.")


def _as_literal(word: str) -> Any:
    """The word as a TOML number, boolean or quoted text; None when it is none of these."""
    import tomllib

    try:
        value = tomllib.loads(f"value = {word}").get("value")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, bool | int | float | str) else None


def _read_or_default(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return default_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Check the file.") from error


def _uncommented(content: str, section_name: str, key_name: str, value: str) -> str | None:
    """The text with the commented default of a setting replaced; None when there is none."""
    lines = content.splitlines(keepends=True)
    current = ""
    commented = re.compile(rf"#\s*{re.escape(key_name)}\s*=")
    assigned = re.compile(rf"\s*{re.escape(key_name)}\s*=")
    found = None
    for index, line in enumerate(lines):
        if header := re.match(r"\s*\[([\w-]+)\]", line):
            current = header[1]
        elif current == section_name and assigned.match(line):
            return None
        elif current == section_name and commented.match(line) and found is None:
            found = index
    if found is None:
        return None
    lines[found] = f"{key_name} = {value}\n"
    return "".join(lines)


def _assigned(content: str, section_name: str, key_name: str, value: Any) -> str:
    import tomlkit

    document = tomlkit.parse(content)
    if section_name not in document:
        document[section_name] = tomlkit.table()
    document[section_name][key_name] = value
    return tomlkit.dumps(document)


def _replace_file(path: Path, content: str) -> None:
    """Put the text in the place of the file, once it has been read as settings."""
    parse_config(content, path)
    target = path.resolve()  # a link to a dotfiles directory stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else PRIVATE
        write_atomically(target, content.encode(), mode=mode)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {reason(error)}.", f"{advice(error)}, then try again."
        ) from error
