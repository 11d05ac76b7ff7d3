"""Engines on the `model` of a test module: on this machine, and once more on the stand-in of a GPU.

Every module whose tests start engines runs on both, unless it is named below; and some on a card.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import machines
from tests.equivalence.engine import Factory, IdsEngine
from tests.machines import Machine

# What these look at is something of the CPU, or brings the device along.
ON_THE_HOST_ALONE = {
    "test_attention": "a kernel of the CPU",
    "test_device": "has its own link",
    "test_device_attention": "both kernels are compared",
    "test_gguf_real": "a model that takes seconds",
    "test_lent": "nothing is lent to a device",
    "test_quantized": "kernels of the CPU",
    "test_static_step": "has its own graphs",
}
ON_A_CARD = ("test_ahead", "test_cut_any_token", "test_int8")  # what takes minutes there


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module
    name = module.__name__.rpartition(".")[2]
    if hasattr(module, "IdsEngine") or "engine" in metafunc.fixturenames:
        found: list[Any] = [pytest.param(machines.HOST, id="host")]
        if name not in ON_THE_HOST_ALONE:
            found.append(pytest.param(machines.STAND_IN, id="stand-in"))
        if name in ON_A_CARD and (card := machines.card()) is not None:
            found.append(pytest.param(card, id="card", marks=pytest.mark.gpu))
        metafunc.parametrize("machine", found, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    found: Machine = getattr(request, "param", machines.HOST)
    with machines.on(found):
        yield found


@pytest.fixture
def engine(model: Any, tmp_path: Path) -> Iterator[Factory]:
    """Makes engines on one cache directory, like processes that come and go."""
    made: list[IdsEngine] = []

    def make(name: str = "cache", **options: Any) -> IdsEngine:
        for earlier in made:
            earlier.prefixes.drain()
        made.append(IdsEngine(model, tmp_path / name, **options))
        return made[-1]

    yield make
    for opened in made:
        opened.close()
