"""Personas: a system prompt with a name, and if wanted its own sampling.

Owns how they are written in config.toml. Knows neither models nor screens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatcache.checks import Check, checked_table, text
from chatcache.errors import UsageError

SECTION = "personas"
EXAMPLE = """
# Personas: a system prompt with a name, and if wanted its own sampling. /persona picks one.
# [personas.tutor]
# system = "You explain one step at a time, and end with a question."
# temperature = 0.3
"""


@dataclass(frozen=True, slots=True)
class Persona:
    """`sampling`: the parameters that it sets, by the names of the settings ("temperature")."""

    name: str
    system: str
    sampling: Mapping[str, Any] = field(default_factory=dict)


def read_personas(
    tables: Mapping[str, Any], sampling: Mapping[str, Check], where: str
) -> dict[str, Persona]:
    """The personas of a config file, by name. `where` names the file.

    Raises UsageError for an unknown key, and for a persona without a system prompt.
    """
    return {name: _read(name, table, sampling, where) for name, table in tables.items()}


def _read(name: str, table: Any, sampling: Mapping[str, Check], where: str) -> Persona:
    place = f"{where}: {SECTION}.{name}"
    if not isinstance(table, dict):
        raise UsageError(f"{place} is no section.", f"Write [{SECTION}.{name}].")
    if "system" not in table:
        raise UsageError(f"{place} has no system prompt.", 'Write system = "..." in it.')
    chosen = checked_table(table, {"system": text, **sampling}, place)
    return Persona(name, chosen.pop("system").strip(), chosen)
