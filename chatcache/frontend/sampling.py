"""The sampling parameters that are in force while the chat runs, and where each one comes from.

Owns the words people set them with. None of them touches the cache: the K and V of a token do not
depend on how it was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from chatcache.backends.base import ModelInfo, SamplingParams
from chatcache.chat.tasks import TurnOptions
from chatcache.errors import UsageError, did_you_mean
from chatcache.formatting import model_name
from chatcache.personas import Persona

NAMES = tuple(parameter.name for parameter in fields(SamplingParams))
UNTOUCHED = "None of these touches the cache: the same K and V serve every setting."
_WHOLE = frozenset({"top_k", "seed", "max_new_tokens"})
_THINK = {"on": True, "true": True, "off": False, "false": False, "default": None}


@dataclass(frozen=True, slots=True)
class Sampling:
    """`origins` says for each parameter that is set who set it; the others are the model's own."""

    params: SamplingParams = field(default_factory=SamplingParams)
    think: bool | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> TurnOptions:
        """How a turn is to be answered now."""
        return TurnOptions(self.params, self.think)

    def changed(self, name: str, word: str) -> Sampling:
        """With one parameter as a person says it. Raises UsageError naming what is wrong."""
        return self._with(name, _parsed(name, word), "/set")

    def with_persona(self, persona: Persona) -> Sampling:
        """With what a persona sets; what an earlier persona had set is taken back."""
        sampling = self
        for name, origin in self.origins.items():
            if origin.startswith("persona "):
                sampling = sampling._with(name, None, "")
        for name, value in persona.sampling.items():
            sampling = sampling._with(name, value, f"persona {persona.name}")
        return sampling

    def _with(self, name: str, value: Any, origin: str) -> Sampling:
        origins = {known: by for known, by in self.origins.items() if known != name}
        if value is not None:
            origins[name] = origin
        if name == "think":
            return Sampling(self.params, value, origins)
        return Sampling(replace(self.params, **{name: value}), self.think, origins)

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, where it comes from) of every parameter."""
        return [
            (name, value, self.origins.get(name, "set at the start"))
            if value
            else (name, "default", "the model's own settings")
            for name, value in self._values()
        ]

    def words(self) -> list[str]:
        """The parameters that are set: `temperature 0.5`."""
        return [f"{name} {value}" for name, value in self._values() if value]

    def _values(self) -> list[tuple[str, str]]:
        given = [(name, getattr(self.params, name)) for name in NAMES]
        shown = [(name, "" if value is None else f"{value:g}") for name, value in given]
        think = "" if self.think is None else "on" if self.think else "off"
        return [*shown, ("think", think)]

    def remark(self, info: ModelInfo | None) -> str:
        """What the model makes of the choice to think or not, where that is not what it says."""
        if info is None or self.think is None:
            return ""
        name = model_name(info.model)
        if info.think_switch == "none":
            word = "thinking" if self.think else "not thinking"
            return f"{name} cannot be told: its template has no switch, so {word} changes nothing."
        if info.think_switch == "effort" and not self.think:
            return f"{name} cannot be kept from thinking; it is told to think little."
        return ""

    def report(self) -> str:
        """A table of all parameters, for `/params`."""
        lines = [f"{name:<19} {value:<9} {origin}" for name, value, origin in self.rows()]
        return "\n  ".join([*lines, UNTOUCHED])


def _parsed(name: str, word: str) -> Any:
    if name == "think":
        if word not in _THINK:
            raise UsageError(f"{word!r} is neither on, off nor default.", "Say /set think off.")
        return _THINK[word]
    if name not in NAMES:
        hint = did_you_mean(name, [*NAMES, "think"]) or f"There are {', '.join(NAMES)} and think."
        raise UsageError(f"There is no parameter {name!r}.", hint)
    if word == "default":
        return None
    try:
        return int(word) if name in _WHOLE else float(word)
    except ValueError:
        what = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(f"{name} takes {what}, not {word!r}.", "Or say default.") from None
