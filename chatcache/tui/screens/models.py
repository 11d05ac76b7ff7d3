"""The models at hand: pick one to answer this chat from now on, or name one to be downloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from textual.content import Content

from chatcache.backends.base import ModelInfo
from chatcache.backends.local.model.shelf import ShelfModel, place_of
from chatcache.errors import ChatcacheError
from chatcache.formatting import model_name, one_line, parameters, size
from chatcache.frontend import reports
from chatcache.frontend.model_choice import TO_FETCH, ModelChoice
from chatcache.frontend.server_shelf import merged, unreachable
from chatcache.remotes import RemoteProfile
from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.look.formatting import MUTED, padded, shorten
from chatcache.tui.screens.filter_list import FilterListScreen
from chatcache.tui.screens.forms import FormScreen

_PLACE, _PARAMETERS, _QUANTIZATION, _SIZE, _ARCHITECTURE = 10, 10, 9, 9, 24
_ASKED_FIRST = "Before a download its exact size is asked, and then you."
_ON_DISK = ("directory", "file", "LM Studio", "llama.cpp")


class ModelScreen(FilterListScreen[ShelfModel, str]):
    """Returns the name of a model; switching is done by whoever asked."""

    BINDINGS = bindings("models")
    title_text = "Models"
    placeholder = "type to filter; ORGANISATION/NAME, a directory or a GGUF file for another"
    keys_text = "Enter switch to it · F7 in 4 or 8 bits · F6 at every start · Esc close"
    empty_text = "no such model here; ORGANISATION/NAME downloads one"

    def __init__(
        self,
        choice: ModelChoice,
        info: ModelInfo | None,
        consequence: str,
        *,
        set_default: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self._choice, self._info, self._current = choice, info, choice.current(info)
        self._consequence, self._set_default = consequence, set_default

    async def fill(self) -> None:
        models = await asyncio.to_thread(self._choice.at_hand)
        self._show([*models, *self._choice.suggested(models)], self._current)
        for profile in self._choice.servers.remotes.values():
            self.do(self._ask(profile))

    def _show(self, models: Sequence[ShelfModel], highlight: str | None = None) -> None:
        self.set_items({model.name: model for model in models}, highlight)

    async def _ask(self, profile: RemoteProfile) -> None:
        """Put the models of a server into the list when it tells; nobody waits for it."""
        problem, offered = "", []
        try:
            offered = await asyncio.to_thread(self._choice.servers.ask, profile)
        except ChatcacheError as error:
            problem = error.message
        if not self.is_mounted:
            return
        known = list(self.items.values())
        self._show(
            unreachable(known, profile, problem) if problem else merged(known, profile, offered)
        )

    def search_text(self, model: ShelfModel) -> str:
        return f"{model.name} {model.architecture} {model.quantization} {model.place}"

    def found(self, words: Sequence[str]) -> dict[str, ShelfModel]:
        """What is typed may be a model that is not in the list."""
        found, typed = super().found(words), self.query_text.strip()
        is_meant = self._choice.is_name(typed)
        is_beginning = bool(found) and place_of(typed) == "ollama"  # of a name in the list
        if typed and typed not in self.items and is_meant and not is_beginning:
            found[typed] = self._choice.named(typed)
        return found

    # Drawing

    def columns(self, width: int) -> Content:
        return _line("  model", "where", "parameters", "quant", "size", "architecture", width)

    def draw(self, model: ShelfModel, width: int) -> Content:
        mark = "● " if model.name == self._current else "  "
        name = mark + model_name(model.name)
        if model.problem and model.problem != TO_FETCH:
            problem = model.problem.removeprefix(f"{model.name} ")  # the row says which it is
            return _problem_line(name, problem, width)
        return _line(
            name,
            "download" if model.problem else model.place,
            parameters(model.num_parameters) if model.num_parameters else "",
            model.quantization,
            size(model.num_bytes) if model.num_bytes else "",
            model.architecture,
            width,
        )

    def preview(self, model: ShelfModel) -> Content:
        if model.name == self._current and self._info is not None:
            return Content.styled(reports.model(self._info).replace("\n  ", "\n"), MUTED)
        if model.problem and model.problem != TO_FETCH:
            return Content.styled(one_line(f"{model.problem} {model.advice}"), MUTED)
        about = [one_line(model.name)] if model.place in _ON_DISK else []
        about += [f"Reuse: {one_line(model.reuse)}."] if model.reuse else []
        if model.problem:
            how_much = f", about {size(model.num_bytes)}" if model.num_bytes else ""
            about.append(f"Not here yet: {TO_FETCH}{how_much}. {_ASKED_FIRST}")
        told = [Content.styled(line, MUTED) for line in about]
        return Content("\n").join([*told, Content(self._consequence)])

    def choose(self, model: ShelfModel) -> None:
        if model.problem and model.problem != TO_FETCH:
            self.say(one_line(f"{model.problem} {model.advice}"))
        else:
            self.dismiss(model.name)

    def action_form(self) -> None:
        """Choose how many bits the weights of the model take."""
        if (model := self.highlighted) is not None:
            self.do(self._choose_form(model))

    async def _choose_form(self, model: ShelfModel) -> None:
        if model.problem:
            self.say("Only a model that is on this machine has forms to choose from.")
            return
        await asyncio.to_thread(self._choice.forms, model.name)  # raises what speaks against it
        screen = FormScreen(model.name, partial(self._choice.forms, model.name), self._current)
        if (chosen := await self.app.push_screen_wait(screen)) is not None:
            self.dismiss(chosen)

    def action_default(self) -> None:
        """Write the model into the settings, without switching to it."""
        model = self.highlighted
        if model is None:
            return
        if self._set_default is None or model.problem:
            self.say("Only a model that is on this machine can be loaded at every start.")
            return
        try:
            self._set_default(model.name)
        except Exception as failure:
            error = as_user_error(failure)
            self.say(f"{error.message} {error.hint}")
        else:
            self.say(f"{model_name(model.name)} is loaded at every start from now on.")


def _line(
    name: str,
    place: str,
    parameters_: str,
    quantization: str,
    size_: str,
    architecture: str,
    width: int,
) -> Content:
    tail = f"{quantization:>{_QUANTIZATION}}{size_:>{_SIZE}}"
    if width >= 70:
        tail = f"{parameters_:>{_PARAMETERS}}{tail}"
    if width >= 60:
        tail = f"{place:<{_PLACE}}{tail}"
    if width >= 90:
        tail += f"  {shorten(architecture, _ARCHITECTURE):<{_ARCHITECTURE}}"
    rest = width - len(tail) - 1
    label = shorten(name, rest) if name.strip() == name else "  " + shorten(name, rest - 2)
    return padded(label, rest) + Content(f" {tail}")


def _problem_line(name: str, problem: str, width: int) -> Content:
    label = name if name.strip() == name else "  " + name.strip()
    return Content.assemble(label, (f"  {problem}", MUTED)).truncate(width, ellipsis=True)
