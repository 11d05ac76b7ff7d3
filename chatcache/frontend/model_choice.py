"""Which model answers: what can be chosen, what choosing one means, and the way back.

Owns the model before the last switch, so that a download can be called off and a model that fails
is left again. Methods that look at files, ask the hub or switch may block; knows no widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatcache.backends.local.model import hub_files, resolve, shelf
from chatcache.backends.local.model.gguf.choice import GgufFile, listed
from chatcache.backends.local.model.shelf import ShelfModel
from chatcache.backends.switching import SwitchingBackend
from chatcache.errors import ChatcacheError, UnavailableError
from chatcache.formatting import model_label, model_name, one_line, size
from chatcache.frontend import servers
from chatcache.frontend.server_shelf import ServerShelf
from chatcache.model_form import PACKED_FORMS, NamedForm, form_name, named_form
from chatcache.remotes import Remotes, check_reach, remote_model

if TYPE_CHECKING:
    from chatcache.backends.base import ModelInfo
    from chatcache.backends.local.model.quantized_form import ModelForm
    from chatcache.chat.service import ChatService
    from chatcache.frontend.form_shelf import FormShelf

MAX_OTHERS = 8
TO_FETCH = "to be downloaded from the hub"
# Small, open, and reused after any token. The sizes are those of the weights when this was written;
# the real one is asked before a download.
SUGGESTED: tuple[tuple[str, int], ...] = (
    ("HuggingFaceTB/SmolLM2-360M-Instruct", 720_000_000),
    ("Qwen/Qwen3-0.6B", 1_500_000_000),
    ("Qwen/Qwen3-1.7B", 4_060_000_000),
    ("Qwen/Qwen3-4B-Instruct-2507", 8_040_000_000),
)


@dataclass(frozen=True, slots=True)
class Download:
    """A model that is not on this machine yet, and the room there is for it. `name` says which of
    the files of a repository it is, and `others` which there are beside it."""

    name: str
    num_bytes: int
    free_bytes: int
    others: tuple[GgufFile, ...] = ()

    @property
    def question(self) -> str:
        return f"Download {one_line(self.name)}?"

    @property
    def detail(self) -> str:
        text = f"{size(self.num_bytes)} from the hub; {size(self.free_bytes)} are free."
        return f"{text} Others there: {listed(self.others, MAX_OTHERS)}." if self.others else text


class ModelChoice:
    """The models that a chat service can be answered by."""

    def __init__(
        self,
        service: ChatService,
        remotes: Remotes | None = None,
        forms: FormShelf | None = None,
        *,
        is_offline: bool = False,
    ) -> None:
        self._service, self._forms = service, forms
        self._is_offline = is_offline
        self._before: str | None = None
        self._told_hosts: set[str] = set()
        self._remarked: set[str] = set()
        self.servers = ServerShelf(remotes or {}, is_offline)

    # What is in use

    @property
    def can_switch(self) -> bool:
        return isinstance(self._service.backend, SwitchingBackend)

    @property
    def _backend(self) -> SwitchingBackend:
        backend = self._service.backend
        if not isinstance(backend, SwitchingBackend):
            raise UnavailableError(
                "The model cannot be changed here.", "Start chatcache with --model NAME."
            )
        return backend

    def current(self, info: ModelInfo | None) -> str:
        """The model in use. `PROFILE:` has got the name of the server's only model; a path is
        whole, as in lists, and the form is said where it is not the usual one."""
        named = self._named(self._backend.model)
        name = resolve.whole_name(named.model)
        if info is not None and name.endswith(":") and info.model.startswith(name):
            return info.model
        return self._with_form(name, self._form_of(named, info))

    def is_in_use(self, name: str, info: ModelInfo | None) -> bool:
        named = self._named(name)
        wanted = self._with_form(named.model, self._form_of(named, None))
        return wanted in (self._backend.model, self.current(info))

    def _named(self, name: str) -> NamedForm:
        return named_form(name, self.servers.remotes)

    def _form_of(self, named: NamedForm, info: ModelInfo | None) -> str:
        """What a model turned out to be, else what its name says; "": as the settings say."""
        if info is not None and info.quantization in PACKED_FORMS:
            return info.quantization
        return named.form

    def _with_form(self, model: str, form: str) -> str:
        if self._forms is None:
            return form_name(model, form) if form else model
        return self._forms.name(model, form)

    # What there is

    def at_hand(self) -> list[ShelfModel]:
        """The models of this machine and of the servers, the one in use among them; no server is
        asked."""
        used_before = self._service.recall.models_used()
        if self.can_switch:
            in_use = resolve.whole_name(self._named(self._backend.model).model)
            used_before = [in_use, *(name for name in used_before if name != in_use)]
        found = shelf.shelf(used_before, self.servers.remotes)
        here = found if self._forms is None else self._forms.with_made(found)
        return [*here, *self.servers.models(used_before)]

    def forms(self, name: str) -> list[ModelForm]:
        """The forms of a model on this machine: exact, and in fewer bits. Raises ChatcacheError for
        one that has no others."""
        if self._forms is None or self.servers.find(name) is not None:
            raise UnavailableError(
                f"{model_name(name)} is loaded as its server has it.",
                "Only models of this machine are turned into 4 or 8 bits.",
            )
        return self._forms.forms(self._named(name).model)

    def is_name(self, typed: str) -> bool:
        """Could this name a model, whether it is here or not?"""
        return shelf.is_name(self._named(typed).model) or self.servers.find(typed) is not None

    def suggested(self, models: Iterable[ShelfModel]) -> list[ShelfModel]:
        """What could be downloaded beside these, for somebody who knows no name."""
        if self._is_offline:
            return []
        at_hand = {model.name for model in models}
        return [
            ShelfModel(name, "hub", num_bytes=num_bytes, problem=TO_FETCH)
            for name, num_bytes in SUGGESTED
            if name not in at_hand
        ]

    def named(self, name: str) -> ShelfModel:
        """A model that was typed: a server's, a directory, or one of the hub to be fetched."""
        if (remote := self.servers.find(name)) is not None:
            return self.servers.row(remote)
        named = self._named(name)
        if shelf.is_hub_id(named.model) and not shelf.is_on_disk(named.model):
            return ShelfModel(name, "hub", problem=TO_FETCH)
        row = shelf.at_hand(named.model)
        return replace(row, name=name, quantization=named.form) if named.form else row

    def first_offers(self) -> list[ShelfModel]:
        """For somebody who has used nothing but the built-in model: what else there is."""
        if not self.can_switch or self._backend.model != resolve.BUILTIN:
            return []
        return [] if self._service.recall.models_used() else self.at_hand()

    # Choosing

    def must_download(self, name: str) -> bool:
        """Has this model to be fetched first? Raises what speaks against choosing it."""
        remote = remote_model(name, self.servers.remotes)
        if remote is not None:
            check_reach(remote.profile, is_offline=self._is_offline)
            return False
        named = self._named(name)
        found = resolve.resolve_model(named.model, is_offline=self._is_offline)
        if named.form in PACKED_FORMS and self._forms is not None and isinstance(found, Path):
            self._forms.forms(named.model)
        return not isinstance(found, Path)

    def download(self, name: str) -> Download:
        """What it is, and how much. Asks the hub; raises UnavailableError when it is silent."""
        named = self._named(name)
        model = hub_files.model_on_hub(named.model)
        chosen = form_name(model.name, named.form) if named.form else model.name
        return Download(chosen, model.num_bytes, resolve.free_bytes(), model.others)

    def consequence(self, num_tokens: int) -> str:
        """What another model means for a chat of so many tokens."""
        text = (
            f"{num_tokens:,} tokens of this chat are read anew by it, once. " if num_tokens else ""
        )
        return (text + self._kept(self._backend.model)).strip()

    def switch(self, name: str) -> None:
        """Have another model answer; returns when it is loading."""
        backend = self._backend
        self._before = backend.model  # it may be ready before this returns
        try:
            backend.switch(name)
        except ChatcacheError:
            self._before = None
            raise

    def ready(self, info: ModelInfo) -> str:
        """The model can answer: what to say of it, "" when nothing had been switched."""
        before, self._before = self._before, None
        if before is None:
            return ""
        label = model_label(info.model, info.quantization)
        return f"{label} answers from now on. {self._kept(before)}".strip()

    def privacy(self, info: ModelInfo) -> str:
        """Who gets to read the messages, said once per server; "" when there is nothing to say."""
        told = servers.privacy_words(info)
        if not told or info.device in self._told_hosts:
            return ""
        self._told_hosts.add(info.device)
        return told

    def remarks(self, info: ModelInfo) -> tuple[str, ...]:
        """What somebody should know of the model, said once."""
        new = tuple(remark for remark in info.remarks if remark not in self._remarked)
        self._remarked.update(new)
        return new

    def way_back(self) -> Callable[[], None] | None:
        """What brings the model before back, to be called where it may block; None when nothing is
        being switched. It is given once."""
        before, self._before = self._before, None
        return None if before is None else partial(self._backend.switch, before)

    def _kept(self, old: str) -> str:
        """What stays of a model that is left; what a server keeps, it keeps by itself."""
        if self.servers.find(old) is not None:
            return ""
        return f"The K and V of {model_name(old)} stay, and serve again when you switch back."
