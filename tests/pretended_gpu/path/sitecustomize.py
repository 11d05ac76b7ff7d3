"""Python runs this as it starts: when torch has been imported, it gets the pretended device."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

LIBRARY = os.environ.get("CHATCACHE_PRETENDED_GPU")


class Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_with_device(module: Any) -> None:
            load(module)
            sys.path.insert(0, str(Path(__file__).parents[1]))
            try:
                import device  # type: ignore[import-not-found]
            finally:
                del sys.path[0]
            device.install(LIBRARY)

        spec.loader.exec_module = load_with_device  # type: ignore[method-assign]
        return spec


if LIBRARY:
    sys.meta_path.insert(0, Finder())
