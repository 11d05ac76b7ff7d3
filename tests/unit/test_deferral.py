"""Modules that run when an attribute of them is asked for. The packages are real, on disk."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chatcache.backends.local.model.deferral import Deferral, Rule

Defer = Callable[[Mapping[str, Rule]], Deferral]
FILES = {
    "shop/__init__.py": "import shop.log\nlog.ran.append('shop')\nfrom shop import till\n",
    "shop/log.py": "ran = []\n",
    "shop/till.py": (
        "import shop.log\nshop.log.ran.append('till')\n"
        "import shop.till.drawer\nfrom shop.till.drawer import KEY as key\n"
        "def mark(function):\n    function.is_marked = True\n    return function\n"
    ),
    "shop/shelf/__init__.py": (
        "import shop.log\nshop.log.ran.append('shelf')\n__all__ = ['soap']\ndepth = 2\n"
    ),
    "shop/shelf/soap.py": "import shop.log\nshop.log.ran.append('soap')\nprice = 3\n",
    "shop/counter.py": (
        "import shop.log\nshop.log.ran.append('counter')\nimport shop.shelf\nshop.shelf.depth\n"
    ),
    "shop/window.py": "import shop.log\nshop.log.ran.append('window')\nwidth = 9\n",
    "lists/__init__.py": (
        "import sys, types\n"
        "class Listing(types.ModuleType):\n"
        "    def __getattr__(self, name):\n"
        "        if name == 'Apple':\n            return 'an apple'\n"
        "        raise AttributeError(name)\n"
        "listing = Listing(__name__)\nlisting.__path__ = __path__\nlisting.__spec__ = __spec__\n"
        "sys.modules[__name__] = listing\n"
    ),
    "lists/fruit.py": "from . import __version__ as version\nfrom . import tree\n",
    "lists/tree.py": "height = 4\n",
}


@pytest.fixture
def defer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Defer]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    till = tmp_path / "shop" / "till"
    till.mkdir()
    (till / "drawer.py").write_text("import shop.log\nshop.log.ran.append('drawer')\nKEY = 7\n")
    (tmp_path / "shop" / "till.py").rename(till / "__init__.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    def install(rules: Mapping[str, Rule]) -> Deferral:
        deferral = Deferral(rules)
        sys.meta_path.insert(0, deferral)
        return deferral

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shop", "lists")]:
        del sys.modules[name]


def ran() -> list[str]:
    found: list[str] = sys.modules["shop.log"].ran  # type: ignore[attr-defined]
    return found


def load(name: str) -> Any:
    return importlib.import_module(name)


def test_a_module_runs_when_an_attribute_is_asked_for(defer: Defer) -> None:
    deferral = defer({"shop.till": Rule()})
    shop = load("shop")
    assert (ran(), deferral.pending) == (["shop"], ("shop.till",))
    assert shop.till.key == 7
    assert (ran(), deferral.pending) == (["shop", "till", "drawer"], ())
    assert shop.till is sys.modules["shop.till"]
    assert shop.till.__spec__.loader.get_source("shop.till") == FILES["shop/till.py"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shop.till.nothing


def test_what_anybody_looks_for_in_a_module_does_not_run_it(defer: Defer) -> None:
    deferral = defer({"shop.till": Rule()})
    till = load("shop").till
    assert not hasattr(till, "__warningregistry__")
    assert till.__name__ == "shop.till"
    assert till.__file__.endswith("__init__.py")
    assert deferral.pending == ("shop.till",)


def test_a_submodule_runs_its_package_first_and_itself_once(defer: Defer) -> None:
    defer({"shop.till": Rule()})
    drawer = load("shop.till.drawer")
    assert ran() == ["shop", "till", "drawer"]
    assert drawer.KEY == 7
    assert drawer is sys.modules["shop.till.drawer"] is load("shop.till").drawer
    assert drawer.__spec__.loader.get_filename("shop.till.drawer").endswith("drawer.py")


def test_a_free_submodule_leaves_its_package_alone(defer: Defer) -> None:
    deferral = defer({"shop.till": Rule(submodules=frozenset({"drawer"}))})
    assert load("shop.till.drawer").KEY == 7
    assert ran() == ["shop", "drawer"]
    assert deferral.run_all()
    assert ran() == ["shop", "drawer", "till"]
    assert not deferral.run_all()


def test_modules_of_one_package_run_in_the_order_of_their_imports(defer: Defer) -> None:
    defer({"shop.till": Rule(), "shop.shelf": Rule()})
    load("shop")
    assert load("shop.shelf.soap").price == 3
    assert ran() == ["shop", "till", "drawer", "shelf", "soap"]


def test_a_module_may_have_others_run_that_were_next(defer: Defer) -> None:
    names = ["shop.counter", "shop.shelf", "shop.window"]
    deferral = defer(dict.fromkeys(names, Rule()))
    *_, window = map(load, names)
    assert deferral.pending == tuple(names)
    assert window.width == 9
    assert ran()[-3:] == ["counter", "shelf", "window"]
    assert deferral.pending == ()


def test_what_is_given_holds_until_the_module_has_run(defer: Defer) -> None:
    defer({"shop.till": Rule(given={"mark": lambda function: function})})
    till = load("shop").till

    def before() -> None: ...

    till.mark(before)
    assert not hasattr(before, "is_marked")
    assert till.key == 7
    till.mark(before)
    assert hasattr(before, "is_marked")


def test_a_list_lets_its_submodules_in_and_becomes_what_it_puts_in_its_place(defer: Defer) -> None:
    deferral = defer({"lists": Rule(given={"__version__": "1.2"}, is_list=True)})
    lists = load("lists")
    assert load("lists.fruit").version == "1.2"
    assert lists.tree.height == 4
    assert deferral.pending == ("lists",)
    assert lists.Apple == "an apple"  # by who imported it before
    assert deferral.pending == ()
    assert load("lists").Apple == "an apple"
    assert load("lists") is not lists
    with pytest.raises(AttributeError, match="Pear"):
        _ = lists.Pear


def test_a_module_that_is_there_already_is_left_alone(defer: Defer) -> None:
    shop = load("shop")
    deferral = defer({"shop.till": Rule()})
    assert load("shop.till") is shop.till
    assert deferral.pending == ()
    with pytest.raises(ModuleNotFoundError):
        load("shop.nowhere")


def test_a_module_that_does_not_exist_is_not_deferred(defer: Defer) -> None:
    deferral = defer({"shop.nowhere": Rule()})
    with pytest.raises(ModuleNotFoundError):
        load("shop.nowhere")
    assert deferral.pending == ()
