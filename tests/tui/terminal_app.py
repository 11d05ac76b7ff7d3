"""The application on a fake backend, for a real terminal: `terminal_app.py DIRECTORY [--plain]`."""

from __future__ import annotations

import sys
from pathlib import Path

from chatcache.chat.service import ChatService
from chatcache.chat.store import SessionStore
from chatcache.frontend.options import Backstage, ChatOptions
from chatcache.frontend.sampling import Sampling
from chatcache.plain.chat import PlainChat
from chatcache.tui.app import ChatCacheApp
from tests.fakes import FakeBackend


def main(directory: Path, *, is_plain: bool) -> None:
    backend = FakeBackend()
    with ChatService(SessionStore(directory / "chats.db"), backend) as service:
        backend.start()
        options = ChatOptions(drafts_path=directory / "drafts.json")
        if is_plain:
            PlainChat(Backstage(service, Sampling()), options).run()
            return
        app = ChatCacheApp(lambda: Backstage(service, Sampling()), options)
        app.run()
        if app.failure is not None:
            raise app.failure


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_plain="--plain" in sys.argv)
