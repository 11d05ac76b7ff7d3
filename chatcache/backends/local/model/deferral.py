"""Lets a module be imported without running its code, until an attribute of it is asked for.

Nothing is replaced: whoever uses a deferred module gets the real one, only later. The standard
library's `LazyLoader` does the same, but not for packages: there the import of any submodule runs
the package, and that is what is to be saved here. Knows nothing of which modules are worth it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """How a module is deferred.

    `given`: attributes that it has before its code has run. `is_list`: it is a package that only
    lists what its submodules have, so that all of these can be imported without running it; of
    others only those in `submodules` can.
    """

    given: Mapping[str, object] = field(default_factory=dict)
    submodules: frozenset[str] = frozenset()
    is_list: bool = False


class Deferral(MetaPathFinder):
    """Defers modules by name while it stands in `sys.meta_path`.

    The modules of one top-level package depend on each other: running one of them first runs those
    that were imported before it. A module that has been imported already is left alone."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._pending: dict[str, ModuleSpec] = {}  # in the order of their imports
        self._lock = threading.RLock()

    @property
    def pending(self) -> tuple[str, ...]:
        """The modules that were imported and have not run yet."""
        return tuple(self._pending)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package in self._pending and not self._is_free(package, name):
            self.run(package)
            if (present := sys.modules.get(fullname)) is not None:
                # The package has imported it. The import system takes what a module that has
                # appeared meanwhile says of itself, and would load it once more.
                present.__spec__ = ModuleSpec(fullname, _Present(present))
                return present.__spec__
        if fullname not in self._rules:
            return None
        real = _find(fullname, path, target, self)
        if real is None or real.loader is None:
            return None
        spec = ModuleSpec(fullname, _Deferring(self, real), origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        spec.has_location = real.has_location
        spec.cached = real.cached
        return spec

    def _is_free(self, package: str, name: str) -> bool:
        rule = self._rules[package]
        return rule.is_list or name in rule.submodules

    def defer(self, module: ModuleType, real: ModuleSpec) -> None:
        """Note that `module`, which has just been imported, is still to be run."""
        vars(module).update(self._rules[module.__name__].given)
        self._pending[module.__name__] = real

    def attribute(self, module: ModuleType, name: str) -> Any:
        """What a deferred module has not got yet. Raises AttributeError."""
        fullname = f"{module.__name__}.{name}"
        if module.__name__ in self._pending and not _is_special(name):
            is_list = self._rules[module.__name__].is_list
            if is_list and importlib.util.find_spec(fullname) is not None:
                return importlib.import_module(fullname)
            self.run(module.__name__)
            if name in vars(module):
                return vars(module)[name]
        real = sys.modules.get(module.__name__)
        if real is None or real is module:  # some put another object there when they run
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return getattr(real, name)

    def run(self, name: str) -> None:
        """Run the code of a deferred module; of one that has run already nothing more."""
        with self._lock:
            top = name.partition(".")[0]
            for earlier in self.pending:
                is_left = earlier in self._pending and name in self._pending  # one may run others
                if is_left and earlier.partition(".")[0] == top:
                    self._run_one(earlier)

    def run_all(self) -> bool:
        """Run all that was deferred; returns whether there was anything."""
        pending = self.pending
        for name in pending:
            self.run(name)
        return bool(pending)

    def _run_one(self, name: str) -> None:
        real, module = self._pending.pop(name), sys.modules[name]
        for given in self._rules[name].given:
            vars(module).pop(given, None)
        module.__spec__, module.__loader__ = real, real.loader
        if real.loader is not None:
            real.loader.exec_module(module)


class _DeferredModule(ModuleType):
    """A module whose code has not run, or whose code has put another object in its place."""

    def __init__(self, name: str, deferral: Deferral) -> None:
        super().__init__(name)
        vars(self)["__deferral__"] = deferral

    def __getattr__(self, name: str) -> Any:
        deferral: Deferral = vars(self)["__deferral__"]
        return deferral.attribute(self, name)


class _Deferring(Loader):
    """Makes a module that is run later."""

    def __init__(self, deferral: Deferral, real: ModuleSpec) -> None:
        self._deferral = deferral
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _DeferredModule(spec.name, self._deferral)

    def exec_module(self, module: ModuleType) -> None:
        self._deferral.defer(module, self._real)


class _Present(Loader):
    """Gives the import system a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _find(
    fullname: str, path: Sequence[str] | None, target: ModuleType | None, leave_out: MetaPathFinder
) -> ModuleSpec | None:
    """What the other finders say."""
    for finder in sys.meta_path:
        if finder is not leave_out and (spec := finder.find_spec(fullname, path, target)):
            return spec
    return None


def _is_special(name: str) -> bool:
    """Names that anybody may look for in any module; nobody means its content by them."""
    return name.startswith("__") and name.endswith("__")
