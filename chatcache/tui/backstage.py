"""What stands behind the screen, and the imports that come with it.

The first paint needs neither: both are brought in by a thread when the screen is there.
"""

from __future__ import annotations

import gc
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.frontend.desk import SegmentDesk
    from chatcache.frontend.sampling import Sampling

_FOR_THE_CHAT = ("chatcache.tui.wiring",)
_FOR_THE_REST = ("chatcache.tui.actions.table", "pygments.lexers.python")


@dataclass(frozen=True, slots=True)
class Backstage:
    """Everything that the screen acts on. `desk` None: the cache is not on this machine."""

    service: ChatService
    sampling: Sampling
    desk: SegmentDesk | None = None


def load_chat() -> None:
    """Import what shows a chat. Called in a thread."""
    _load(_FOR_THE_CHAT)


def load_rest() -> None:
    """Import what the first command would wait for, and end the start. Called in a thread."""
    _load(_FOR_THE_REST)
    if not gc.isenabled():
        # What a start makes stays: the collector need not walk through it while somebody types.
        gc.freeze()
        gc.enable()


def _load(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)
