"""The application on a fake backend, for a real terminal: `python terminal_app.py DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.frontend.options import Backstage
from chatcache.frontend.sampling import Sampling
from chatcache.tui.app import ChatCacheApp
from tests.fakes import FakeBackend


def main(directory: Path) -> None:
    backend = FakeBackend()
    with ChatService(SessionStore(directory / "chats.db"), backend) as service:
        backend.start()
        ChatCacheApp(lambda: Backstage(service, Sampling())).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
