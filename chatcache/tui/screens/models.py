"""The models at hand: pick one to answer this chat from now on, or name one to be downloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from textual.content import Content

from chatcache.backends.base import ModelInfo
from chatcache.backends.local.model.shelf import ShelfModel, at_hand, is_directory, is_hub_id
from chatcache.errors import ChatcacheError
from chatcache.formatting import one_line, parameters, size
from chatcache.frontend import reports
from chatcache.frontend.server_shelf import ServerShelf, merged, unreachable
from chatcache.frontend.suggestions import suggestions
from chatcache.remotes import RemoteProfile
from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.formatting import padded, shorten
from chatcache.tui.screens.filter_list import FilterListScreen
from chatcache.tui.styles import MUTED

_PLACE, _PARAMETERS, _SIZE, _ARCHITECTURE = 10, 10, 9, 24
_TO_FETCH = "to be downloaded from the hub"


class ModelScreen(FilterListScreen[ShelfModel, str]):
    """Returns the name of a model; switching is done by whoever asked."""

    BINDINGS = bindings("models")
    title_text = "Models"
    placeholder = "type to filter; ORGANISATION/NAME or a directory for another one"
    keys_text = "Enter switch to it · F6 load it at every start · Esc close"
    empty_text = "no such model here; ORGANISATION/NAME downloads one"

    def __init__(
        self,
        models: Callable[[], Sequence[ShelfModel]],
        current: str,
        info: ModelInfo | None,
        consequence: str,
        *,
        servers: ServerShelf | None = None,
        set_default: Callable[[str], None] | None = None,
        is_offline: bool = False,
    ) -> None:
        super().__init__()
        self._models, self._current, self._info = models, current, info
        self._consequence, self._set_default = consequence, set_default
        self._is_offline = is_offline
        self._servers = servers or ServerShelf()

    async def fill(self) -> None:
        models = await asyncio.to_thread(self._models)
        self._show([*models, *self._offers(models)], self._current)
        for profile in self._servers.remotes.values():
            self.do(self._ask(profile))

    def _show(self, models: Sequence[ShelfModel], highlight: str | None = None) -> None:
        self.set_items({model.name: model for model in models}, highlight)

    async def _ask(self, profile: RemoteProfile) -> None:
        """Put the models of a server into the list when it tells; nobody waits for it."""
        problem, offered = "", []
        try:
            offered = await asyncio.to_thread(self._servers.ask, profile)
        except ChatcacheError as error:
            problem = error.message
        if not self.is_mounted:
            return
        known = list(self.items.values())
        self._show(
            unreachable(known, profile, problem) if problem else merged(known, profile, offered)
        )

    def _offers(self, models: Sequence[ShelfModel]) -> list[ShelfModel]:
        """What could be downloaded, for somebody who knows no name."""
        if self._is_offline:
            return []
        return [
            ShelfModel(name, "hub", num_bytes=num_bytes, problem=_TO_FETCH)
            for name, num_bytes in suggestions(model.name for model in models)
        ]

    def search_text(self, model: ShelfModel) -> str:
        return f"{model.name} {model.architecture}"

    def found(self, words: Sequence[str]) -> dict[str, ShelfModel]:
        """What is typed may be a model that is not in the list."""
        found, typed = super().found(words), self.query_text.strip()
        is_name = is_hub_id(typed) or "/" in typed or self._servers.find(typed) is not None
        if typed and typed not in self.items and is_name:
            found[typed] = self._named(typed)
        return found

    # Drawing

    def columns(self, width: int) -> Content:
        return _line("  model", "where", "parameters", "size", "architecture", width)

    def draw(self, model: ShelfModel, width: int) -> Content:
        mark = "● " if model.name == self._current else "  "
        if model.problem:
            about = f", about {size(model.num_bytes)}" if model.num_bytes else ""
            return _problem_line(f"{mark}{model.name}", model.problem + about, width)
        return _line(
            f"{mark}{model.name}",
            model.place,
            parameters(model.num_parameters) if model.num_parameters else "",
            size(model.num_bytes) if model.num_bytes else "",
            model.architecture,
            width,
        )

    def _named(self, name: str) -> ShelfModel:
        """A model that was typed: a server's, or one of this machine or the hub."""
        remote = self._servers.find(name)
        return _named(name) if remote is None else self._servers.row(remote)

    def preview(self, model: ShelfModel) -> Content:
        if model.name == self._current and self._info is not None:
            return Content.styled(reports.model(self._info).replace("\n  ", "\n"), MUTED)
        if model.problem and model.problem != _TO_FETCH:
            return Content.styled(one_line(model.problem), MUTED)
        fetched = "Before a download its exact size is asked, and then you."
        reuse = f"Reuse: {one_line(model.reuse)}." if model.reuse else fetched
        return Content.assemble((reuse, MUTED), "\n", self._consequence)

    def choose(self, model: ShelfModel) -> None:
        if model.problem and model.problem != _TO_FETCH:
            self.say(one_line(model.problem))
        else:
            self.dismiss(model.name)

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
            self.say(f"{one_line(model.name)} is loaded at every start from now on.")


def _named(name: str) -> ShelfModel:
    """A model that was typed: a directory is looked at, a name of the hub is to be fetched."""
    if is_hub_id(name) and not is_directory(name):
        return ShelfModel(name, "hub", problem=_TO_FETCH)
    return at_hand(name)


def _line(
    name: str, place: str, parameters_: str, size_: str, architecture: str, width: int
) -> Content:
    tail = f"{parameters_:>{_PARAMETERS}}{size_:>{_SIZE}}"
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
